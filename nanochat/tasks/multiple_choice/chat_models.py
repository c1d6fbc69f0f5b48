"""Multiple choice for chat models, which answer with one letter (MMLU, Hendrycks et al. 2021; ARC, Clark et al. 2018).

Each option is followed by its letter without a space (`- Paris=B`), so that the letter is tokenized as in the answer.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanochat.tasks.parsing import RowParser, row_error, strip_special_tokens
from nanochat.tasks.table import LetterTask
from nanochat.tasks.task import Example, gold_text, single_turn


@dataclass(frozen=True)
class Question:
    """One row of the data. `labels` are those of the data if it has any, else A, B, C, ..."""

    text: str
    options: tuple[str, ...]
    labels: tuple[str, ...]
    gold: int
    subject: str = ""


@dataclass(frozen=True)
class MultipleChoice:
    """Questions that are answered with the letter of an option."""

    name: LetterTask
    rows: Sequence[Question]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        meta = {"subject": row.subject} if row.subject else {}
        return Example(single_turn(render_question(row), row.labels[row.gold]), letters=row.labels, meta=meta)

    def grade(self, example: Example, completion: str) -> bool:
        """Return whether the completion is the right letter and nothing else."""
        return strip_special_tokens(completion) == gold_text(example)


def render_question(question: Question) -> str:
    """Return the user's message: the question, a line for each option, and a request for the letter."""
    pairs = zip(question.options, question.labels, strict=True)
    options = "".join(f"- {option}={label}\n" for option, label in pairs)
    return f"Multiple choice question: {question.text}\n{options}\nAnswer with the letter only."


def parse_mmlu(row: dict[str, object]) -> Question:
    """Return an MMLU row; auxiliary_train wraps it in `train`. A row of another form raises a StageError."""
    match row:
        case {"question": str(text), "choices": [*choices], "answer": int(gold)} if 0 <= gold < len(choices):
            options = tuple(str(choice) for choice in choices)
            subject = row.get("subject")
            labels = tuple(string.ascii_uppercase[: len(options)])
            return Question(text, options, labels, gold, subject if isinstance(subject, str) else "")
        case {"train": dict(wrapped)}:
            return parse_mmlu(wrapped)
        case _:
            raise row_error("mmlu", row, "`question`, `choices` (a list), `answer` (an index into it)")


def parse_arc(row: dict[str, object]) -> Question:
    """Return an ARC row with the labels that it has. A row of another form raises a StageError."""
    match row:
        case {"question": str(text), "choices": {"text": [*texts], "label": [*labels]}, "answerKey": str(key)}:
            if key in labels and len(texts) == len(labels):
                return Question(text, tuple(map(str, texts)), tuple(map(str, labels)), labels.index(key))
    raise row_error("arc", row, "`question`, `choices` {text, label}, `answerKey` (one of the labels)")


QUESTION_PARSERS: Mapping[LetterTask, RowParser[Question]] = {
    "mmlu": parse_mmlu,
    "arc_easy": parse_arc,
    "arc_challenge": parse_arc,
}
