"""Multiple choice for base models: a context and several continuations, which are compared by log-probability.

HellaSwag (Zellers et al. 2019) continues its context. MMLU and ARC ask `Question: ...\\nAnswer:` and compare the texts
of the options instead of letters, because small base models do not use lists of options. Solved examples, if a recipe
asks for them, precede the question, each followed by an empty line.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.data.source_checks import check_rows
from nanochat.data.source_splits import has_split
from nanochat.data.sources.source_spec import SourceSpec, as_preflight_error
from nanochat.data.splits import parse_split
from nanochat.tasks.mixture import choose_problems, draw_solved_examples
from nanochat.tasks.multiple_choice.chat_models import QUESTION_PARSERS, Question
from nanochat.tasks.parsing import RowParser, read_rows, row_error
from nanochat.tasks.table import TASKS, ChoiceTask

_BRACKETED = re.compile(r"\[.*?\]")


@dataclass(frozen=True)
class ChoiceItem:
    """One problem: the context, the options that may follow it (leading space included), the right option's index."""

    context: str
    options: tuple[str, ...]
    gold: int
    subject: str = ""
    num_fewshot: int = 0
    """The number of solved examples that should begin the context."""
    example_starts: tuple[int, ...] = ()
    """Where each of those that the data had begins in the context."""

    @property
    def solved(self) -> str:
        return f"{self.context}{self.options[self.gold]}\n\n"


def build_choice_items(
    task: ChoiceTask,
    source: SourceSpec,
    split: str | None = None,
    *,
    base: Path,
    num_fewshot: int = 0,
    max_problems: int | None = None,
) -> tuple[ChoiceItem, ...]:
    """Return the problems of a split, each preceded by `num_fewshot` solved examples, or by all if there are fewer.

    The examples come from the source's `dev` split for MMLU (from the same subject) and from its `train` split for the
    other tasks. If the source lacks that split, they are other problems of the evaluated split. `max_problems` keeps
    the first problems of a fixed shuffle, which is the same for every recipe.

    Raises:
        PreflightError: the split or a column is missing.
        StageError: a row does not have the task's form.
    """
    split = split or TASKS[task].eval_split
    parse = _parser(task)
    problems = read_rows(parse, source, split, base=base)
    order = choose_problems(len(problems), max_problems)
    if num_fewshot == 0:
        return tuple(problems[number] for number in order)
    shot_split = TASKS[task].fewshot_split
    is_separate = parse_split(split)[0] != shot_split and has_split(source, shot_split, base=base)
    shots = read_rows(parse, source, shot_split, base=base) if is_separate else problems
    return _add_fewshot(problems, order, shots, num_fewshot, is_separate=is_separate)


def _add_fewshot(
    problems: Sequence[ChoiceItem],
    order: Sequence[int],
    shots: Sequence[ChoiceItem],
    num_fewshot: int,
    *,
    is_separate: bool,
) -> tuple[ChoiceItem, ...]:
    """Return the problems in `order` after solved `shots` of the same subject, never after themselves."""
    by_subject: dict[str, list[int]] = {}
    for number, shot in enumerate(shots):
        by_subject.setdefault(shot.subject, []).append(number)
    items = []
    for number in order:
        problem = problems[number]
        pool = [other for other in by_subject.get(problem.subject, ()) if is_separate or other != number]
        drawn = draw_solved_examples(pool, min(num_fewshot, len(pool)), number=number)
        solved = [shots[other].solved for other in drawn]
        starts = tuple(itertools.accumulate(map(len, solved), initial=0))[: len(solved)]
        context = "".join(solved) + problem.context
        items.append(replace(problem, context=context, num_fewshot=num_fewshot, example_starts=starts))
    return tuple(items)


def check_choices(task: ChoiceTask, source: SourceSpec, split: str | None, *, base: Path) -> None:
    """Check that a task can read its split: all rows of small files, the first row of each large one.

    The message of a PreflightError names the source, the file, and what a row must have.
    """
    split = split or TASKS[task].eval_split
    if parse_split(split)[1] is not None:
        with as_preflight_error(source):
            build_choice_items(task, source, split, base=base)
    else:
        check_rows(source, split, _parser(task), base=base)


def _parser(task: ChoiceTask) -> RowParser[ChoiceItem]:
    if task == "hellaswag":
        return _parse_hellaswag
    parse = QUESTION_PARSERS[task]
    return lambda row: _to_choice_item(parse(row))


def _parse_hellaswag(row: dict[str, object]) -> ChoiceItem:
    """Return a HellaSwag row without WikiHow's marks. A row without a label raises a StageError."""
    match row:
        case {"ctx": str(context), "endings": [*endings], "label": str() | int() as label} if str(label).isdigit():
            if int(label) < len(endings):
                options = tuple(f" {clean_wikihow(str(ending))}" for ending in endings)
                return ChoiceItem(clean_wikihow(context), options, int(label))
    raise row_error("hellaswag", row, "`ctx`, `endings`, `label` (an index)")


def clean_wikihow(text: str) -> str:
    """Return the text without `[header]`, `[step]` and the like; a `[title]` becomes a full stop."""
    text = _BRACKETED.sub("", text.strip().replace(" [title]", ". "))
    return re.sub(" {2,}", " ", text).strip()


def _to_choice_item(question: Question) -> ChoiceItem:
    """Return the item that compares the texts of a question's options."""
    options = tuple(f" {option}" for option in question.options)
    return ChoiceItem(f"Question: {question.text}\nAnswer:", options, question.gold, question.subject)
