"""Tasks that are classes in a user's Python file, which run in the sandbox, each call in a process with limits.

The class has `num_examples()`, `get_example(i)` and `evaluate(example, completion)`. An example is
`{"messages": [{"role": ..., "content": ...}, ...]}`; a last message of the assistant is the reference answer. Examples
cross between processes as plain data, so `evaluate` receives a copy. A new process grades every completion.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from nanochat.errors import PreflightError, StageError
from nanochat.tasks.custom.python_files import PythonFile
from nanochat.tasks.custom.python_grader import line_of, read_literal, read_score, reason_of
from nanochat.tasks.mixture import choose_problems
from nanochat.tasks.parsing import strip_special_tokens
from nanochat.tasks.table import TaskName
from nanochat.tasks.task import Example, GradingError, gold_text
from nanochat.tokenizer.chat_format import Conversation, Message, Role
from nanochat.tools.sandbox.run import find_isolation, run_tests
from nanochat.tools.sandbox.settings import Limits
from nanochat.tools.sandbox.watch import Outcome

READING_LIMITS = Limits(wall_seconds=60.0, cpu_seconds=60, memory_bytes=1 << 30)
"""For all examples together."""
_MAX_EXAMPLES = 1_000_000
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_FUNCTIONS = ("_nanochat_size", "_nanochat_example", "_nanochat_evaluate")
_CALLS = """

_nanochat_task = {name}()
if getattr(_nanochat_task, "eval_type", "generative") != "generative":
    raise TypeError("the `eval_type` of the class must be `generative`; no other is supported")
def _nanochat_size():
    return _nanochat_task.num_examples()
def _nanochat_example(index):
    return _nanochat_task.get_example(index)
def _nanochat_evaluate(example, completion):
    return _nanochat_task.evaluate(example, completion)
"""
"""Code that is appended to the user's file, so that its line numbers stay as they are."""


@dataclass(frozen=True)
class PythonTask:
    """The examples that the class returned, and the class, which grades them."""

    name: ClassVar[TaskName] = "python"
    chance: ClassVar[float] = 0.0
    file: PythonFile
    examples: Sequence[dict[str, object]]
    accept_unisolated: bool = False

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        example = self.examples[index]
        return Example(_conversation(self.file, example), meta={"example": json.dumps(example)})

    def grade(self, example: Example, completion: str) -> float:
        """Return the score by the class's `evaluate` for the completion without special tokens, from 0 to 1.

        Raises:
            GradingError: it took too long or too much memory, or ended its process.
            StageError: it raised an exception, or returned something else; the message has the place in the file.
        """
        # The example stays JSON text, since the `repr` of a number that is not finite is no expression.
        call = f"_nanochat_evaluate(json.loads({example.meta['example']!r}), {strip_special_tokens(completion)!r})"
        tests = f"import json\nREPORT = ascii({call})"
        outcome = _run(self.file, tests, Limits(), accept_unisolated=self.accept_unisolated)
        if not outcome.passed and line_of(outcome, self.file) is None:
            raise GradingError(f"{self.file}: evaluate: {reason_of(outcome)}")
        _raise_if_failed(outcome, self.file)
        score = read_score(outcome.report)
        if score is None:
            raise StageError(
                f"{self.file.path}: {self.file.name}.evaluate returned {outcome.report[:80]}; "
                "it must return True, False or a number from 0 to 1"
            )
        return score


def read_python_task(file: PythonFile, *, max_problems: int | None, accept_unisolated: bool = False) -> PythonTask:
    """Return the examples of a class: all, or `max_problems` of them, chosen by a fixed shuffle.

    Raises:
        StageError: the class fails, or returns something of another form; the message has the place in the file.
        PreflightError: this machine cannot isolate programs.
    """
    limits = READING_LIMITS
    outcome = _run(file, "REPORT = ascii(_nanochat_size())", limits, accept_unisolated=accept_unisolated)
    _raise_if_failed(outcome, file)
    count = read_literal(outcome.report)
    if type(count) is not int or not 1 <= count <= _MAX_EXAMPLES:
        raise StageError(
            f"{file.path}: {file.name}.num_examples returned {outcome.report[:80]}; "
            f"it must return a whole number from 1 to {_MAX_EXAMPLES:,}"
        )
    order = choose_problems(count, max_problems)
    tests = f"import json\nREPORT = json.dumps([_nanochat_example(index) for index in {order}])"
    outcome = _run(file, tests, limits, accept_unisolated=accept_unisolated)
    _raise_if_failed(outcome, file)
    examples = json.loads(outcome.report)
    for index, example in zip(order, examples, strict=True):
        _check_example(file, index, example)
    return PythonTask(file, examples, accept_unisolated)


def check_python_task(file: PythonFile, *, accept_unisolated: bool) -> None:
    """Check, before a run, that the class returns examples, and that it can grade the first one's own answer.

    Raises a PreflightError with the place in the file.
    """
    try:
        task = read_python_task(file, max_problems=None, accept_unisolated=accept_unisolated)
        task.grade(task[0], gold_text(task[0]))
    except (StageError, GradingError) as error:
        raise PreflightError(str(error)) from error


def _run(file: PythonFile, tests: str, limits: Limits, *, accept_unisolated: bool) -> Outcome:
    program = file.source + _CALLS.format(name=file.name)
    isolation = find_isolation(accept_none=accept_unisolated)
    return run_tests(program, tests, functions=_FUNCTIONS, limits=limits, isolation=isolation)


def _raise_if_failed(outcome: Outcome, file: PythonFile) -> None:
    """Raise a StageError with the line and the reason if the class failed."""
    if not outcome.passed:
        line = line_of(outcome, file)
        place = file.path if line is None else f"{file.path}:{line}"
        raise StageError(f"{place}: {file.name}: {reason_of(outcome)}")


def _check_example(file: PythonFile, index: int, example: object) -> None:
    match example:
        case {"messages": [_, *_] as messages} if all(_is_message(message) for message in messages):
            roles = [message["role"] for message in messages]
            turns = roles[1:] if roles[0] == "system" else roles
            if turns and all(role == ("user", "assistant")[number % 2] for number, role in enumerate(turns)):
                _check_unicode(file, index, messages)
                return
    raise StageError(
        f"{file.path}: {file.name}.get_example({index}) returned {str(example)[:200]}; it must return "
        '`{"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]}`; a `system` '
        "message may come first, and users and assistants alternate"
    )


def _check_unicode(file: PythonFile, index: int, messages: Sequence[dict[str, str]]) -> None:
    for message in messages:
        try:
            message["content"].encode()
        except UnicodeEncodeError as error:
            raise StageError(
                f"{file.path}: {file.name}.get_example({index}) returned text with half of a character "
                f"(U+{ord(error.object[error.start]):04X} at character {error.start + 1:,}); repair or drop it"
            ) from None


def _is_message(message: object) -> bool:
    match message:
        case {"role": str(role), "content": str()}:
            return role in _ROLES
    return False


def _conversation(file: PythonFile, example: dict[str, object]) -> Conversation:
    messages = example["messages"]
    assert isinstance(messages, list), f"{file.path}: checked when it was read"
    turns = [Message(message["role"], message["content"]) for message in messages]
    reference = [] if turns[-1].role == "assistant" else [Message("assistant", "")]
    return Conversation((*turns, *reference))
