"""Builds a task from its name and its source, and checks that a source has what a task needs.

Not here: tasks of base models, which compare the likelihood of options (`multiple_choice.base_models` and
`core_bundle`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nanochat.data.source_checks import check_rows
from nanochat.data.sources.source_spec import SourceSpec, as_preflight_error, describe
from nanochat.data.splits import parse_split
from nanochat.errors import PreflightError
from nanochat.tasks.conversations import check_conversations, read_conversations
from nanochat.tasks.generative.gsm8k import GSM8K, parse_word_problem
from nanochat.tasks.generative.humaneval import HumanEval, parse_function
from nanochat.tasks.generative.spelling import Spelling, read_words
from nanochat.tasks.mixture import PROBLEM_SHUFFLE_SEED, take_shuffled, take_slice
from nanochat.tasks.multiple_choice.chat_models import QUESTION_PARSERS, MultipleChoice
from nanochat.tasks.parsing import RowParser, read_rows
from nanochat.tasks.table import ExampleTask, RowTask
from nanochat.tasks.task import Task

Choice = Literal["first", "shuffled"]

_ROW_FORMATS: Mapping[RowTask, tuple[RowParser[Any], Callable[[Sequence[Any]], Task]]] = {
    "gsm8k": (parse_word_problem, GSM8K),
    "humaneval": (parse_function, HumanEval),
    **{name: (parse, partial(MultipleChoice, name)) for name, parse in QUESTION_PARSERS.items()},
}
"""How a row is parsed, and how the parsed rows become a task."""


def build_task(
    task: ExampleTask,
    source: SourceSpec,
    split: str,
    *,
    max_examples: int | None,
    seed: int,
    base: Path,
    choose: Choice | None = None,
    accept_unisolated: bool = False,
) -> Task:
    """Return a task's examples of one split.

    Args:
        split: name of a split, or a part of one such as `train[:500]`.
        max_examples: upper limit on the number of examples. A generated task makes exactly this many; by default it
            makes one for each word.
        seed: seed of generated tasks. The rows of files do not depend on it.
        choose: which rows `max_examples` keeps: the `first` ones, or a fixed shuffle of all. The default is `first` for
            training splits and `shuffled` for evaluation splits (MMLU is sorted by subject).
        accept_unisolated: grade programs even if this machine cannot isolate them.

    Raises:
        PreflightError: the source, the split or a column is missing.
        StageError: a row does not have the task's form.
    """
    split_name, bounds = parse_split(split)
    choose = choose or _usual_choice(split_name)
    row_limit = max_examples if choose == "first" and bounds is None else None
    built: Task
    match task:
        case "simple_spelling" | "spelling_bee":
            words = read_words(source, split, base=base)
            return Spelling(task, words=words, size=max_examples or len(words), split=split, seed=seed)
        case "conversations":
            built = read_conversations(source, split_name, base=base, max_examples=row_limit)
        case _:
            parse, build = _ROW_FORMATS[task]
            built = build(read_rows(parse, source, split_name, base=base, max_rows=row_limit))
    if isinstance(built, HumanEval):
        built = replace(built, accept_unisolated=accept_unisolated)
    if bounds is not None:
        built = take_slice(built, bounds.start, bounds.stop)
        if len(built) == 0:
            raise PreflightError(f"{describe(source)}: no rows in `{split}`")
    if max_examples is None or row_limit is not None:
        return built
    if choose == "first":
        return take_slice(built, 0, max_examples)
    return take_shuffled(built, max_examples, seed=PROBLEM_SHUFFLE_SEED)


def _usual_choice(split_name: str) -> Choice:
    return "first" if split_name.endswith("train") else "shuffled"


def check_task(
    task: ExampleTask,
    source: SourceSpec,
    split: str,
    *,
    base: Path,
    max_examples: int | None = None,
    notify: Callable[[str], None] = lambda note: None,
) -> None:
    """Check that a task can read its split of a source. `notify` receives notes on chats that are not used whole.

    Small files are checked by all rows that the task will read, large ones by the first row of each file. Of a part of
    a split (`train[:500]`) all rows are read. The message of a PreflightError names the source, the file, and the
    expected form.
    """
    if parse_split(split)[1] is not None:
        with as_preflight_error(source):
            build_task(task, source, split, max_examples=max_examples, seed=0, base=base)
        return
    max_rows = max_examples if _usual_choice(split) == "first" else None
    match task:
        case "simple_spelling" | "spelling_bee":
            read_words(source, split, base=base)
        case "conversations":
            check_conversations(source, split, base=base, max_examples=max_rows, notify=notify)
        case _:
            check_rows(source, split, _ROW_FORMATS[task][0], base=base, max_rows=max_rows)
