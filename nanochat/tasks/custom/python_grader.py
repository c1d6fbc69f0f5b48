"""Grades completions with a function that the user wrote, in the sandbox: `grade(example, completion)`.

The function returns a truth value or a number from 0 to 1. It runs in a process of its own for every completion, since
a program may run what a model wrote. Whatever else it does counts as a failure: it takes too long, ends its process,
raises an exception or returns something else. Only the value that it returns counts, not what it prints.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from nanochat.tasks.custom.python_files import PythonFile
from nanochat.tasks.task import GradingError
from nanochat.tools.sandbox.run import find_isolation, run_tests
from nanochat.tools.sandbox.settings import Limits
from nanochat.tools.sandbox.watch import Outcome

_LINE = re.compile(r'File "program\.py", line (\d+)')
_SHOWN_CHARS = 80


def grade_with_program(
    program: PythonFile,
    example: Mapping[str, object],
    completion: str,
    *,
    limits: Limits | None = None,
    accept_unisolated: bool = False,
) -> float:
    """Return the score that the program's function gives a completion, from 0 to 1.

    Raises:
        GradingError: the function fails, or returns anything but a truth value or a number from 0 to 1.
        PreflightError: this machine cannot isolate programs.
    """
    outcome = run_tests(
        program.source,
        f"REPORT = ascii({program.name}({dict(example)!r}, {completion!r}))",
        functions=[program.name],
        limits=limits,
        isolation=find_isolation(accept_none=accept_unisolated),
    )
    if not outcome.passed:
        raise GradingError(f"{program}: {_failure_of(outcome, program)}")
    score = read_score(outcome.report)
    if score is None:
        value = outcome.report[:_SHOWN_CHARS] or "nothing"
        raise GradingError(f"{program}: returned {value}; it must return True, False or a number from 0 to 1")
    return score


def _failure_of(outcome: Outcome, file: PythonFile) -> str:
    """Return why a program failed, with the line of its file if there was an exception."""
    line = line_of(outcome, file)
    return reason_of(outcome) if line is None else f"line {line}: {reason_of(outcome)}"


def reason_of(outcome: Outcome) -> str:
    """Return why a program failed, without its line."""
    return outcome.message.partition("\n")[0]


def line_of(outcome: Outcome, file: PythonFile) -> int | None:
    """Return the line of the file in which a program raised an exception, or None if it ended in another way.

    The program printed its traceback itself, so the line is a hint for the user and nothing else.
    """
    last = file.source.count("\n") + 1
    lines = [line for number in _LINE.findall(outcome.stderr) if (line := int(number)) <= last]
    return lines[-1] if lines else None


def read_score(text: str) -> float | None:
    """Return the value of a literal that is a truth value or a number from 0 to 1, or None for any other text."""
    value = read_literal(text)
    return float(value) if type(value) in (bool, int, float) and 0 <= value <= 1 else None


def read_literal(text: str) -> Any:
    """Return the value of a Python literal, or None for any other text, such as `nan`."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
