"""GSM8K (Cobbe et al. 2021): word problems whose worked answers call a calculator and end in `#### number`.

The data writes a call as `<<48/2=24>>` and repeats the result in the text that follows. Here `48/2` becomes Python
code, and the calculator computes its output. So the model is trained on the same outputs that the engine will insert.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from nanochat.tasks.parsing import parse_final_number, row_error, strip_special_tokens
from nanochat.tasks.table import TaskName
from nanochat.tasks.task import Example, single_turn
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
        """Return whether the number after `####` is right; no other number of the text counts."""
        return parse_final_number(strip_special_tokens(completion)) == parse_final_number(example.meta["answer"])


def parse_word_problem(row: dict[str, object]) -> WordProblem:
    """Return a row of the data. A row without `question` and an `answer` with a number raises a StageError."""
    match row:
        case {"question": str(question), "answer": str(answer)} if parse_final_number(answer) is not None:
            return WordProblem(question, answer)
    raise row_error("gsm8k", row, "`question` and `answer` with a number after `####`")


def split_calls(answer: str) -> tuple[Part, ...]:
    """Return the parts of a worked answer: text, and each call as Python followed by its output.

    Calls that the calculator refuses are left out, because the engine would inject nothing for them.
    """
    parts: list[Part] = []
    text, done = "", 0
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
