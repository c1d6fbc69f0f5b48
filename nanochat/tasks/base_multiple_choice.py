"""Multiple choice for base models: a text to continue and several continuations, scored by log-probability.

HellaSwag (Zellers et al. 2019) continues its context. MMLU and ARC ask `Question: ...\\nAnswer:` and the options' own
texts are compared, not letters: small base models do not read lists of options. Solved examples, where asked for, stand
before the question with an empty line between.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.source_checks import check_rows
from nanochat.data.sources import SourceSpec, as_preflight_error, describe, resolve_files
from nanochat.data.splits import parse_split, splits_of_files
from nanochat.data.task_rows import iter_rows
from nanochat.errors import PreflightError, StageError
from nanochat.tasks.chat_multiple_choice import QUESTION_PARSERS, Question
from nanochat.tasks.mixture import PROBLEM_SHUFFLE_SEED
from nanochat.tasks.table import TASKS, ChoiceTask

_FEWSHOT_SEED = 1234
_BRACKETED = re.compile(r"\[.*?\]")


@dataclass(frozen=True)
class ChoiceItem:
    """One question: what each option is appended to, the options with the space in front, the right one's index."""

    context: str
    options: tuple[str, ...]
    gold: int


@dataclass(frozen=True)
class _Problem:
    item: ChoiceItem
    subject: str = ""

    @property
    def solved(self) -> str:
        return f"{self.item.context}{self.item.options[self.item.gold]}\n\n"


def build_choice_items(
    task: ChoiceTask,
    source: SourceSpec,
    split: str | None = None,
    *,
    base: Path,
    num_fewshot: int = 0,
    max_problems: int | None = None,
) -> tuple[ChoiceItem, ...]:
    """Return the problems of a split with `num_fewshot` solved examples in front of each.

    The examples come from the source's `dev` (MMLU, of the same subject) or `train` split, or from the other problems
    where it has none; as many as there are where there are fewer. `max_problems` problems are chosen by a fixed
    shuffle, the same for every recipe.

    Raises:
        PreflightError: the split or a column is missing.
        StageError: a row is not of the task's form.
    """
    asked = split or TASKS[task].eval_split
    split, bounds = parse_split(asked)
    problems = _read(task, source, split, base=base)
    if bounds is not None:
        problems = problems[bounds]
        if not problems:
            raise PreflightError(f"{describe(source)}: no rows in `{asked}`")
    shot_split = TASKS[task].fewshot_split
    separate = (
        num_fewshot > 0 and split != shot_split and shot_split in splits_of_files(resolve_files(source, base=base))
    )
    shots = _read(task, source, shot_split, base=base) if separate else problems
    order = list(range(len(problems)))
    if max_problems is not None:
        random.Random(PROBLEM_SHUFFLE_SEED).shuffle(order)
    by_subject: dict[str, list[int]] = {}
    for number, shot in enumerate(shots):
        by_subject.setdefault(shot.subject, []).append(number)
    items = []
    for number in order[:max_problems]:
        problem = problems[number]
        pool = [other for other in by_subject.get(problem.subject, ()) if separate or other != number]
        drawn = random.Random(_FEWSHOT_SEED + number).sample(pool, min(num_fewshot, len(pool)))
        before = "".join(shots[other].solved for other in drawn)
        items.append(ChoiceItem(before + problem.item.context, problem.item.options, problem.item.gold))
    return tuple(items)


def check_choices(task: ChoiceTask, source: SourceSpec, split: str | None, *, base: Path) -> None:
    """Check that a task's split can be read: by all rows where the files are small, else by the first of each file.

    Raises:
        PreflightError: it cannot; the message names the source, the file, and what a row must have.
    """
    split = split or TASKS[task].eval_split
    if parse_split(split)[1] is not None:
        with as_preflight_error(source):
            build_choice_items(task, source, split, base=base)
        return
    check_rows(source, split, lambda row, number: _parse(task, row, number), base=base)


def parse_hellaswag(row: dict[str, object], number: int) -> ChoiceItem:
    """Return a HellaSwag row (`ctx`, `endings`, `label`), WikiHow's marks cleaned out.

    Raises:
        StageError: the row is not of that form, or has no label (as in the hub's test split).
    """
    match row:
        case {"ctx": str(context), "endings": [*endings], "label": str() | int() as label} if str(label).isdigit():
            if int(label) < len(endings):
                options = tuple(f" {clean_wikihow(str(ending))}" for ending in endings)
                return ChoiceItem(clean_wikihow(context), options, int(label))
    raise StageError(f"hellaswag: row {number} must have `ctx`, `endings`, `label` (an index); it is {str(row)[:200]}")


def clean_wikihow(text: str) -> str:
    """Return the text without `[header]`, `[step]` and the like; a `[title]` becomes a full stop."""
    text = _BRACKETED.sub("", text.strip().replace(" [title]", ". "))
    return re.sub(" {2,}", " ", text).strip()


def to_choice_item(question: Question) -> ChoiceItem:
    """Return a question whose options are compared by their texts."""
    options = tuple(f" {option}" for option in question.options)
    return ChoiceItem(f"Question: {question.text}\nAnswer:", options, question.gold)


def _read(task: ChoiceTask, source: SourceSpec, split: str, *, base: Path) -> Sequence[_Problem]:
    problems = []
    for number, row in enumerate(iter_rows(source, split, base=base)):
        try:
            problems.append(_parse(task, row, number))
        except StageError as error:
            raise StageError(f"{describe(source)}, split `{split}`: {error}") from error
    return problems


def _parse(task: ChoiceTask, row: dict[str, object], number: int) -> _Problem:
    if task == "hellaswag":
        return _Problem(parse_hellaswag(row, number))
    question = QUESTION_PARSERS[task](row, number)
    return _Problem(to_choice_item(question), question.subject)
