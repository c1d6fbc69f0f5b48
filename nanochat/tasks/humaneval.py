"""HumanEval (Chen et al. 2021): functions to write, graded by running their tests in the sandbox."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar

from nanochat.tasks.base import Example, single_turn
from nanochat.tasks.parsing import row_error, strip_special_tokens
from nanochat.tasks.table import TaskName
from nanochat.tools.sandbox import Limits, run_program

_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_IMPORT = re.compile(r"(?:import|from)\s")


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
    limits: Limits = field(default_factory=Limits)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        gold = f"```python\n{row.prompt}{row.canonical_solution}\n```"
        meta = {"task_id": row.task_id, "imports": _imports(row.prompt), "test": row.test, "entry": row.entry_point}
        return Example(single_turn(row.prompt, gold), meta=meta)

    def grade(self, example: Example, completion: str) -> bool:
        """Return whether the completion passes the tests in the sandbox."""
        return run_program(assemble_program(example, completion), limits=self.limits).passed


def parse_function(row: dict[str, object], number: int) -> Function:
    """Return the fields of a row of the data. A row without one of them raises a StageError."""
    names = [part.name for part in fields(Function)]
    texts = {name: value for name in names if isinstance(value := row.get(name), str)}
    if len(texts) < len(names):
        raise row_error("humaneval", row, number, f"the texts {', '.join(names)}")
    return Function(**texts)


def assemble_program(example: Example, completion: str) -> str:
    """Return the prompt's imports, the completion's code, the tests, and the call that runs them."""
    meta = example.meta
    return "\n\n".join([meta["imports"], extract_code(completion), meta["test"], f"check({meta['entry']})\n"])


def extract_code(completion: str) -> str:
    """Return the first fenced block, or the whole text if there is none. An unclosed block extends to the end."""
    text = strip_special_tokens(completion)
    block = _FENCED.search(text)
    return block[1] if block else text


def _imports(prompt: str) -> str:
    """Return the import lines before the first definition."""
    head = re.split(r"^(?:def|class|async def) ", prompt, maxsplit=1, flags=re.MULTILINE)[0]
    return "\n".join(line for line in head.splitlines() if _IMPORT.match(line))
