"""Rows of questions: the text, the accepted answers, and the choices if there are any.

A row has the keys `question`, `answer` and, optionally, `choices`, or the keys that the `map` of its source names. Not
here: how an answer is graded (`graders`), and how a model is asked (`questions`).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.data.sources.source_spec import QuestionMap
from nanochat.errors import StageError
from nanochat.tasks.chat_forms.keys import may_change_meaning, present
from nanochat.tasks.chat_forms.mapping import fill, keys_of, scalar_text
from nanochat.tasks.chat_forms.row_errors import BadConversation
from nanochat.tasks.custom.graders import check_answer
from nanochat.tasks.parsing import RowParser, row_error
from nanochat.tasks.table import GradeRule, TextRule

_EXPECTED = "`question`, `answer` (a text or a list of texts) and, for multiple choice, `choices` (a list)"


@dataclass(frozen=True)
class QuestionRow:
    """One question. With choices, the answers are the texts of the right ones, and `gold` holds their numbers."""

    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    """The labels of the choices: those of the data if it has any, else A, B, C, ..."""
    gold: tuple[int, ...] = ()

    @property
    def gold_labels(self) -> tuple[str, ...]:
        return tuple(self.labels[number] for number in self.gold)


def row_parser(question_map: QuestionMap, rule: GradeRule | None) -> RowParser[QuestionRow]:
    """Return the function that turns a row into a question that `rule` can grade; None is for base models.

    The function raises a StageError for a row of another form, an answer that is none of the choices, or one that the
    rule cannot use.
    """

    def parse(row: dict[str, object]) -> QuestionRow:
        try:
            question = _read(row, question_map, is_answer_needed=rule != "program")
        except BadConversation as error:
            raise StageError(f"questions: {error}") from error
        needs_choices = rule is None or rule == "letter"
        if needs_choices and not question.choices:
            rule_name = "base_eval" if rule is None else "`grade: letter`"
            raise row_error("questions", row, f"`choices`, which {rule_name} needs")
        if rule is None and len(question.gold) != 1:
            raise row_error("questions", row, "exactly one right choice, which base_eval needs")
        if rule is not None and rule != "program" and rule != "letter":
            _check_answers(rule, question.answers, row)
        return question

    return parse


def _check_answers(rule: TextRule, answers: Sequence[str], row: dict[str, object]) -> None:
    problem = next((problem for answer in answers if (problem := check_answer(rule, answer)) is not None), None)
    if problem is not None:
        raise row_error("questions", row, f"an answer for `grade: {rule}`, but {problem}")


def _read(row: dict[str, object], question_map: QuestionMap, *, is_answer_needed: bool) -> QuestionRow:
    texts: dict[str, tuple[str, ...]] = {**dict(question_map)}
    if not texts:
        texts = {"question": ("question",), "answer": ("answer",)}
        texts |= {"choices": ("choices",)} if "choices" in row else {}
    keys = [key for part in texts.values() for text in part for key in keys_of(text)]
    optional = () if is_answer_needed else texts["answer"]
    missing = next((key for key in keys if key not in row and key not in optional), None)
    if missing is not None:
        raise BadConversation(f"a row must have {_EXPECTED}; no key `{missing}`; the keys are: {', '.join(row)}")
    if not question_map:
        _check_unread(row, keys)
    values = present({key: row[key] for key in keys if key in row})
    text = _fill_one(texts["question"][0], values)
    if not text.strip():
        raise BadConversation("the question is empty")
    answers = _list_values(texts["answer"], values)
    if is_answer_needed and not answers:
        raise BadConversation("the answer is empty")
    choices, labels = _read_choices(texts.get("choices", ()), values)
    if not choices:
        return QuestionRow(text, tuple(scalar_text("answer", answer) for answer in answers))
    has_labels = bool(labels)
    labels = labels or tuple(string.ascii_uppercase[: len(choices)])
    gold = tuple(dict.fromkeys(_number_of(answer, choices, labels, only_labels=has_labels) for answer in answers))
    return QuestionRow(text, tuple(choices[number] for number in gold), choices, labels, gold)


def _check_unread(row: dict[str, object], keys: Sequence[str]) -> None:
    """Refuse a key that is not read and may change what the question means, such as `context`."""
    for key, value in present(row).items():
        if key not in keys and may_change_meaning(key, is_nested=isinstance(value, list | dict)):
            raise BadConversation(
                f"the key `{key}` may change what the question means; write a `map` for the source, which says what is "
                f'read: `map: {{question: "{{{key}}} {{question}}", answer: answer}}`'
            )


def _fill_one(text: str, values: dict[str, object]) -> str:
    return fill(text, {key: scalar_text(key, values[key]) for key in keys_of(text) if key in values})


def _list_values(texts: Sequence[str], values: dict[str, object]) -> list[object]:
    """Return the values of several keys or templates, in which a key that holds a list counts as its items."""
    items: list[object] = []
    for text in texts:
        value = values.get(text)
        if isinstance(value, list):
            items += [item for item in value if item is not None]
        elif text in keys_of(text):
            items += [] if value is None else [value]
        else:
            items.append(_fill_one(text, values))
    return items


def _read_choices(texts: Sequence[str], values: dict[str, object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the texts of the choices, and their labels if the data has them, as ARC has (`{text: [], label: []}`)."""
    match [values.get(text) for text in texts]:
        case [{"text": [*options], "label": [*given]}] if len(options) == len(given):
            labels = tuple(scalar_text("label", label) for label in given)
        case _:
            options, labels = _list_values(texts, values), ()
    choices = tuple(scalar_text("choices", option) for option in options)
    if len(choices) == 1 or len(choices) > len(string.ascii_uppercase) or len(set(labels)) < len(labels):
        raise BadConversation(f"a question has 2 to {len(string.ascii_uppercase)} choices with different labels")
    return choices, labels


def _number_of(answer: object, choices: tuple[str, ...], labels: tuple[str, ...], *, only_labels: bool) -> int:
    """Return the number of the choice that an answer means: by its label, its text, or its number from 0.

    An answer that could mean two different choices is refused.
    """
    text = scalar_text("answer", answer)
    readings = {number for number, label in enumerate(labels) if label == text}
    if not only_labels:
        readings |= {number for number, choice in enumerate(choices) if choice == text}
        if text.isascii() and text.isdigit() and int(text) < len(choices):
            readings.add(int(text))
    if len(readings) == 1:
        return readings.pop()
    if not readings:
        raise BadConversation(f"the answer `{text}` is none of the choices: {', '.join(choices)} ({', '.join(labels)})")
    meant = " or ".join(f"`{choices[number]}`" for number in sorted(readings))
    raise BadConversation(f"the answer `{text}` may mean {meant}; write the letter of the choice ({', '.join(labels)})")
