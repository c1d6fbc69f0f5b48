"""The task `questions`: the user's own questions, for base models by log-probability, for chat models by generation.

Solved examples come from a split of the source. A question is never preceded by a question that equals it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from nanochat.data.source_checks import check_rows
from nanochat.data.sources.source_spec import SourceSpec, as_preflight_error, describe
from nanochat.data.splits import parse_split
from nanochat.errors import PreflightError
from nanochat.tasks.custom.graders import grade_text
from nanochat.tasks.custom.python_files import PythonFile
from nanochat.tasks.custom.python_grader import grade_with_program
from nanochat.tasks.custom.question_rows import QuestionRow, row_parser
from nanochat.tasks.mixture import choose_problems, draw_solved_examples
from nanochat.tasks.multiple_choice.base_models import ChoiceItem
from nanochat.tasks.multiple_choice.chat_models import Question, render_question
from nanochat.tasks.parsing import read_rows
from nanochat.tasks.table import GradeRule, TaskName
from nanochat.tasks.task import Example
from nanochat.tokenizer.chat_format import Conversation, Message


@dataclass(frozen=True, kw_only=True)
class Grading:
    """How answers are graded. `program` is set for the rule `program` alone."""

    rule: GradeRule
    program: PythonFile | None = None
    accept_unisolated: bool = False
    """Run the program even if this machine cannot isolate it."""


class Selection(Protocol):
    """A choice of questions of a source, and the text before them: a suite of a plan."""

    @property
    def source(self) -> SourceSpec: ...

    @property
    def split(self) -> str: ...

    @property
    def max_problems(self) -> int | None:
        """At most this number of questions, chosen by a fixed shuffle."""

    @property
    def num_fewshot(self) -> int: ...

    @property
    def fewshot_split(self) -> str: ...

    @property
    def system(self) -> str: ...


@dataclass(frozen=True)
class Questions:
    """Questions for a chat model, each after its solved examples."""

    name: ClassVar[TaskName] = "questions"
    rows: Sequence[tuple[QuestionRow, tuple[QuestionRow, ...]]]
    grading: Grading
    system: str = ""

    @property
    def chance(self) -> float:
        """The expected score of a guess: above 0 if the answers are letters."""
        if self.grading.rule != "letter":
            return 0.0
        return sum(len(row.gold) / len(row.choices) for row, _ in self.rows) / len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row, shots = self.rows[index]
        turns = [turn for shot in (*shots, row) for turn in self._turns(shot)]
        system = [Message("system", self.system)] if self.system else []
        answers = row.gold_labels if self.grading.rule == "letter" else row.answers
        lists = {"answers": answers, "choices": row.choices, "labels": row.labels}
        meta = {"question": row.text, **{key: json.dumps(texts) for key, texts in lists.items()}}
        return Example(Conversation((*system, *turns)), meta=meta)

    def grade(self, example: Example, completion: str) -> float:
        """Return 1 for a right answer and 0 for a wrong one, or what the grading program returns.

        Raises GradingError if the program or a pattern fails.
        """
        grading = self.grading
        fields = {key: json.loads(example.meta[key]) for key in ("answers", "choices", "labels")}
        if grading.rule != "program":
            return grade_text(grading.rule, completion, fields["answers"], labels=fields["labels"])
        assert grading.program is not None, "the rule `program` has a program"
        given = {"question": example.meta["question"], "answers": fields["answers"], "choices": fields["choices"]}
        return grade_with_program(grading.program, given, completion, accept_unisolated=grading.accept_unisolated)

    def _turns(self, row: QuestionRow) -> tuple[Message, Message]:
        if self.grading.rule == "letter":
            text = render_question(Question(row.text, row.choices, row.labels, row.gold[0]))
            return Message("user", text), Message("assistant", row.gold_labels[0])
        return Message("user", row.text), Message("assistant", row.answers[0] if row.answers else "")


def read_questions(selection: Selection, grading: Grading, *, base: Path) -> Questions:
    """Return the questions of a split for a chat model.

    Raises:
        PreflightError: the source or a split is missing, or has too few rows.
        StageError: a row does not have the form that the rule needs.
    """
    return Questions(_read(selection, grading.rule, base=base), grading, selection.system)


def read_choice_items(selection: Selection, *, base: Path) -> tuple[ChoiceItem, ...]:
    """Return the questions of a split for a base model, which compares the texts of the choices.

    Raises as `read_questions`. Each row needs choices of which exactly one is right.
    """
    head = f"{selection.system}\n\n" if selection.system else ""
    items = []
    for row, shots in _read(selection, None, base=base):
        solved = [head, *(f"{_prompt(shot)} {shot.answers[0]}\n\n" for shot in shots)]
        starts = tuple(itertools.accumulate(map(len, solved)))[:-1]
        options = tuple(f" {choice}" for choice in row.choices)
        context = "".join(solved) + _prompt(row)
        items.append(
            ChoiceItem(context, options, row.gold[0], num_fewshot=selection.num_fewshot, example_starts=starts)
        )
    return tuple(items)


def check_questions(selection: Selection, rule: GradeRule | None, *, base: Path) -> None:
    """Check that the splits can be read: all rows of small files, the first row of each large one.

    Raises PreflightError; its message names the source, the row's place, and what a row must have.
    """
    parse = row_parser(selection.source.question_map, rule)
    splits = [selection.split, *([selection.fewshot_split] if selection.num_fewshot else [])]
    if selection.num_fewshot or any(parse_split(split)[1] is not None for split in splits):
        with as_preflight_error(selection.source):
            _read(selection, rule, base=base)
    else:
        check_rows(selection.source, selection.split, parse, base=base)


def _prompt(row: QuestionRow) -> str:
    return f"Question: {row.text}\nAnswer:"


def _read(
    selection: Selection, rule: GradeRule | None, *, base: Path
) -> list[tuple[QuestionRow, tuple[QuestionRow, ...]]]:
    """Return the chosen questions, each with its solved examples."""
    rows = _read_split(selection.source, selection.split, rule, base=base)
    order = choose_problems(len(rows), selection.max_problems)
    if not selection.num_fewshot:
        return [(rows[number], ()) for number in order]
    shots = _read_split(selection.source, selection.fewshot_split, rule, base=base)
    chosen = []
    for number in order:
        pool = [shot for shot in shots if shot != rows[number]]
        if len(pool) < selection.num_fewshot or not all(shot.answers for shot in pool):
            raise PreflightError(
                f"{describe(selection.source)}: `num_fewshot: {selection.num_fewshot}` needs as many other questions "
                f"with answers; `{selection.fewshot_split}` has {sum(bool(shot.answers) for shot in pool):,}"
            )
        chosen.append((rows[number], tuple(draw_solved_examples(pool, selection.num_fewshot, number=number))))
    return chosen


def _read_split(source: SourceSpec, split: str, rule: GradeRule | None, *, base: Path) -> list[QuestionRow]:
    rows = read_rows(row_parser(source.question_map, rule), source, split, base=base)
    if not rows:
        raise PreflightError(f"{describe(source)}: no rows in `{split}`")
    return rows
