"""GSM8K (Cobbe et al. 2021): word problems whose worked answers call a calculator and end in `#### number`.

In the data a call is written `<<48/2=24>>`, and the text goes on with the result. Rendered, the left side becomes
Python and its output what the calculator gives for it, so that a model reads in training what the engine will write.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from nanochat.errors import StageError
from nanochat.tasks.answer_parsing import parse_final_number, strip_special_tokens
from nanochat.tasks.base import Example, single_turn
from nanochat.tasks.table import TaskName
from nanochat.tokenizer.chat_format import Part
from nanochat.tools.calculator import calculate

_CALL = re.compile(r"<<([^<>]*)=([^<>=]*)>>")


@dataclass(frozen=True)
class WordProblem:
    """One row of the data."""

    question: str
    answer: str


@dataclass(frozen=True)
class GSM8K:
    """Word problems, graded by the number after `####`."""

    name: ClassVar[TaskName] = "gsm8k"
    rows: Sequence[WordProblem]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        return Example(single_turn(row.question, split_calls(row.answer)), meta={"answer": row.answer})

    def grade(self, example: Example, completion: str) -> bool:
        """Return whether the number after `####` is the right one; no other number of the text counts."""
        return parse_final_number(strip_special_tokens(completion)) == parse_final_number(example.meta["answer"])


def parse_word_problem(row: dict[str, object], index: int) -> WordProblem:
    """Return a row of the data (`question`, `answer` with a number after `####`).

    Raises:
        StageError: the row is not of that form.
    """
    match row:
        case {"question": str(question), "answer": str(answer)} if parse_final_number(answer) is not None:
            return WordProblem(question, answer)
    expected = "`question` and `answer` with a number after `####`"
    raise StageError(f"gsm8k: row {index} must have {expected}; it is {str(row)[:200]}")


def split_calls(answer: str) -> tuple[Part, ...]:
    """Return the parts of a worked answer: text, each call as Python and its output, and the text that goes on.

    A call that the calculator refuses is left out, since the engine would inject nothing for it.
    """
    parts: list[Part] = []
    text = ""
    done = 0
    for call in _CALL.finditer(answer):
        text += answer[done : call.start()]
        done = call.end()
        output = calculate(call[1])
        if output is not None:
            parts += [Part("text", text)] * bool(text)
            parts += [Part("python", call[1]), Part("python_output", output)]
            text = ""
    text += answer[done:]
    return (*parts, *[Part("text", text)] * bool(text))
