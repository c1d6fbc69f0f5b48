"""HumanEval (Chen et al. 2021): functions to write, graded by running their tests in the sandbox.

Models write code in many ways, so an answer's program is searched for with care: a fence may be missing on either side,
and code may mention fences. What PyTorch nanochat finds in pairs of fences is found here too.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

from nanochat.tasks.parsing import row_error, strip_special_tokens
from nanochat.tasks.table import TaskName
from nanochat.tasks.task import Example, single_turn
from nanochat.tools.sandbox.run import find_isolation, run_tests
from nanochat.tools.sandbox.settings import Limits

_FENCE = re.compile(r"^(?P<before>.*?)(?<!`)```+(?P<language>[\w+#.-]*)[ \t\r]*$", re.MULTILINE)
"""A fence at the end of a line. Anything but the name of a language may be code that mentions a fence."""
_FENCE_LINE = re.compile(r"^(?P<before>[ \t]*)```+(?P<rest>.*)$", re.MULTILINE)
_FENCE_IN_LINE = re.compile(r"(?<![\s\"'`])```(?![\"'`])")
_DEFINITION = re.compile(r"^(?:async )?def ", re.MULTILINE)
_IMPORT = re.compile(r"(?:import|from)\s")
_FUTURE_IMPORT = re.compile(r"^from __future__ import .+\n?", re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """One row of the data: signature and docstring, a body that solves it, and tests that define `check`."""

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str


@dataclass(frozen=True)
class HumanEval:
    """Functions to write. A completion is right if its tests pass."""

    name: ClassVar[TaskName] = "humaneval"
    rows: Sequence[Function]
    limits: Limits = Limits()  # noqa: RUF009 -- a tuple
    accept_unisolated: bool = False
    """Grade even if this machine cannot isolate answers."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        gold = f"```python\n{row.prompt}{row.canonical_solution}\n```"
        # Tests may need the prompt's other functions, and the solution completes the prompt to a valid program.
        setup = row.prompt + row.canonical_solution
        meta = {"task_id": row.task_id, "imports": _imports(row.prompt), "entry": row.entry_point}
        meta |= {"setup": setup, "tests": f"{row.test}\n\ncheck({row.entry_point})\n"}
        return Example(single_turn(row.prompt, gold), meta=meta)

    def grade(self, example: Example, completion: str) -> bool:
        """Return whether the completion passes the tests in the sandbox."""
        meta = example.meta
        return run_tests(
            assemble_program(example, completion),
            meta["tests"],
            functions=[meta["entry"]],
            setup=meta["setup"],
            limits=self.limits,
            isolation=find_isolation(accept_none=self.accept_unisolated),
        ).passed


def parse_function(row: dict[str, object]) -> Function:
    """Return the fields of a row of the data. A row without one of them raises a StageError."""
    names = [part.name for part in fields(Function)]
    texts = {name: value for name in names if isinstance(value := row.get(name), str)}
    if len(texts) < len(names):
        raise row_error("humaneval", row, f"the texts {', '.join(names)}")
    return Function(**texts)


def assemble_program(example: Example, completion: str) -> str:
    """Return the prompt's imports and the completion's code.

    Imports from `__future__` come first, because Python demands it.
    """
    code = extract_code(completion)
    head = "".join(_FUTURE_IMPORT.findall(code)) + example.meta["imports"]
    return "\n\n".join([head, _FUTURE_IMPORT.sub("", code)])


def extract_code(completion: str) -> str:
    """Return the code of the first fenced block, or the whole text if there is no fence.

    A block that nothing closes extends to the end. If only the closing fence is there, the code is the text before it.
    """
    text = strip_special_tokens(completion)
    fences = list(_FENCE.finditer(text))
    # Indented fences after a function has begun are part of its docstring.
    while fences and fences[0]["before"].isspace() and _DEFINITION.search(text, 0, fences[0].start()):
        del fences[0]
    if not fences:
        return text
    first, before = fences[0], text[: fences[0].end("before")]
    following = text[first.end() : fences[1].start() if len(fences) > 1 else len(text)]
    if before.strip() and not first["language"] and _is_closing(before, following):
        return before
    margin = first["before"]
    code = _until_closing(text[first.end() + 1 :], indentation=len(margin) - len(margin.lstrip()))
    return textwrap.dedent(code).lstrip() if code[:1].isspace() else code


def _is_closing(before: str, following: str) -> bool:
    """Return whether a fence between two texts ends the code in the first one, rather than begins that in the second.

    Some models leave out the opening fence, as if the prompt had ended with it.
    """
    return not following.strip() or (bool(_DEFINITION.search(before)) and not _DEFINITION.search(following))


def _until_closing(text: str, *, indentation: int) -> str:
    """Return the text up to the fence that closes a block whose opening fence has this indentation."""
    lines = list(_FENCE_LINE.finditer(text))
    if closing := next((line for line in lines if len(line["before"]) <= indentation), None):
        return text[: closing.start()]
    deeper = [line for line in lines if not line["rest"].strip()]
    if len(deeper) % 2:  # fences in docstrings come in pairs
        return text[: deeper[-1].start()]
    closing = _FENCE_IN_LINE.search(text)
    return text if closing is None else text[: closing.start()]


def _imports(prompt: str) -> str:
    """Return the import lines before the first definition."""
    head = re.split(r"^(?:def|class|async def) ", prompt, maxsplit=1, flags=re.MULTILINE)[0]
    return "\n".join(line for line in head.splitlines() if _IMPORT.match(line))
