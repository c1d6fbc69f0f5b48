"""From a task's name and its source to the task: the only place that knows which rows each task reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, TypeVar, assert_never, get_args

from nanochat.data.source_checks import check_rows
from nanochat.data.sources import SourceSpec, as_preflight_error, describe
from nanochat.data.splits import parse_split
from nanochat.data.task_rows import iter_rows
from nanochat.errors import PreflightError, RecipeError, StageError
from nanochat.tasks.base import Task
from nanochat.tasks.conversations import check_conversations, read_conversations
from nanochat.tasks.gsm8k import GSM8K, word_problem
from nanochat.tasks.humaneval import HumanEval, function_to_write
from nanochat.tasks.mixture import PROBLEM_SHUFFLE_SEED, take_shuffled, take_slice
from nanochat.tasks.multiple_choice import MultipleChoice, arc_question, mmlu_question
from nanochat.tasks.spelling import SimpleSpelling, SpellingBee, source_words

FileTaskName = Literal["conversations", "gsm8k", "mmlu", "arc_easy", "arc_challenge", "humaneval"]
GeneratedTaskName = Literal["spelling_bee", "simple_spelling"]
TaskName = FileTaskName | GeneratedTaskName
TASK_NAMES: tuple[TaskName, ...] = (*get_args(FileTaskName), *get_args(GeneratedTaskName))
Choice = Literal["first", "shuffled"]

_Row = TypeVar("_Row")


def build_task(
    task: str,
    source: SourceSpec,
    split: str,
    *,
    max_examples: int | None,
    seed: int,
    base: Path,
    choose: Choice | None = None,
) -> Task:
    """Return a task's examples of one split.

    Args:
        split: its name, or a part of it such as `train[:500]`.
        max_examples: at most so many; generated tasks make exactly so many, by default one for each word.
        seed: of generated tasks; rows of files do not hang on it.
        choose: which rows `max_examples` keeps: the `first`, or those of a fixed shuffle. By default the first of a
            split to train on, and a shuffle of one to evaluate on (MMLU is sorted by subject).

    Raises:
        RecipeError: there is no such task.
        PreflightError: the source, the split or a column is missing.
        StageError: a row is not of the task's form.
    """
    name = _known(task)
    match name:
        case "simple_spelling" | "spelling_bee":
            words = source_words(source, split, base=base)
            kind = SimpleSpelling if name == "simple_spelling" else SpellingBee
            return kind(words=words, size=max_examples or len(words), split=split, seed=seed)
        case _:
            return _read_chosen(name, source, split, base=base, count=max_examples, choose=choose)


def _read_chosen(
    name: FileTaskName, source: SourceSpec, split: str, *, base: Path, count: int | None, choose: Choice | None
) -> Task:
    split_name, bounds = parse_split(split)
    choose = choose or _usual_choice(split_name)
    read_only = count if choose == "first" and bounds is None else None
    found = _read(name, source, split_name, base=base, max_examples=read_only)
    if bounds is not None:
        found = take_slice(found, bounds.start, bounds.stop)
        if len(found) == 0:
            raise PreflightError(f"{describe(source)}: no rows in `{split}`")
    if count is None or read_only is not None:
        return found
    return take_slice(found, 0, count) if choose == "first" else take_shuffled(found, count, seed=PROBLEM_SHUFFLE_SEED)


def _usual_choice(split_name: str) -> Choice:
    return "first" if split_name.endswith("train") else "shuffled"


def check_task(task: str, source: SourceSpec, split: str, *, base: Path, max_examples: int | None = None) -> None:
    """Check that a task can read its split of a source: by the rows that it will read where the files are small, else
    by the first row of each file. Of a part of a split all rows are read.

    Raises:
        RecipeError: there is no such task.
        PreflightError: it cannot; the message names the source, the file, and what a row must have.
    """
    name = _known(task)
    if parse_split(split)[1] is not None:
        with as_preflight_error(source):
            build_task(task, source, split, max_examples=max_examples, seed=0, base=base)
        return
    first = max_examples if _usual_choice(split) == "first" else None
    match name:
        case "simple_spelling" | "spelling_bee":
            source_words(source, split, base=base)
        case "conversations":
            check_conversations(source, split, base=base, max_examples=first)
        case "gsm8k":
            check_rows(source, split, word_problem, base=base, max_rows=first)
        case "mmlu":
            check_rows(source, split, mmlu_question, base=base, max_rows=first)
        case "arc_easy" | "arc_challenge":
            check_rows(source, split, arc_question, base=base, max_rows=first)
        case "humaneval":
            check_rows(source, split, function_to_write, base=base, max_rows=first)
        case _:
            assert_never(name)


def _known(task: str) -> TaskName:
    for name in TASK_NAMES:
        if name == task:
            return name
    raise RecipeError(f"there is no task `{task}`; tasks are {', '.join(TASK_NAMES)}")


def _read(name: FileTaskName, source: SourceSpec, split: str, *, base: Path, max_examples: int | None) -> Task:
    def rows(parse: Callable[[dict[str, object], int], _Row]) -> Sequence[_Row]:
        found = islice(iter_rows(source, split, base=base), max_examples)
        try:
            return [parse(row, number) for number, row in enumerate(found)]
        except StageError as error:
            raise StageError(f"{describe(source)}, split `{split}`: {error}") from error

    match name:
        case "conversations":
            return read_conversations(source, split, base=base, max_examples=max_examples)
        case "gsm8k":
            return GSM8K(rows(word_problem))
        case "mmlu":
            return MultipleChoice(name, rows(mmlu_question))
        case "arc_easy" | "arc_challenge":
            return MultipleChoice(name, rows(arc_question))
        case "humaneval":
            return HumanEval(rows(function_to_write))
        case _:
            assert_never(name)
