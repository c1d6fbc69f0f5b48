"""A grading program's value counts, and nothing else that it does."""

from __future__ import annotations

import pytest

from nanochat.tasks.custom.python_files import PythonFile
from nanochat.tasks.custom.python_grader import grade_with_program
from nanochat.tasks.task import Example as TaskExample
from nanochat.tasks.task import GradingError, grade_completions, single_turn
from nanochat.tools.sandbox.settings import Limits

EXAMPLE = {"question": "2+2?", "answers": ["4"], "choices": []}
LIMITS = Limits(wall_seconds=1.0, cpu_seconds=1, memory_bytes=256 * 2**20)

RETURNS = {
    "def grade(e, c): return c.strip() == e['answers'][0]": 1.0,
    "def grade(e, c): return 'five' in c": 0.0,
    "def grade(e, c):\n print('1.0')\n return 0.25": 0.25,
}
# What each of these programs does, and what the user reads about it.
FAILURES = {
    "loops": ("def grade(e, c):\n while True: pass", "took longer"),
    "forks": ("import os\ndef grade(e, c):\n os.fork()\n return 1", "line 3: PermissionError"),
    "reads a file": ("def grade(e, c):\n open('/etc/passwd').read()\n return 1", "line 2: FileNotFoundError"),
    "forges a reply": (
        "import os\n"
        "for fd in range(3, 64):\n"
        ' for reply in (b\'["defined", ["grade"]]\', b\'["returned", 1.0, [], {"dict": []}]\'):\n'
        "  try: os.write(fd, len(reply).to_bytes(4, 'big') + reply)\n"
        "  except OSError: pass\n"
        "def grade(e, c): return 0",
        "answers another call",
    ),
    "returns 7": ("def grade(e, c): return 7", "returned 7;"),
}
SLOW_FAILURES = {
    "runs a process": (
        "import subprocess\ndef grade(e, c):\n subprocess.run(['true'])\n return 1",
        "line 3: PermissionError",
    ),
    "connects": ("import socket\ndef grade(e, c):\n socket.socket()\n return 1", "line 3:"),
    "exits after printing": ("import os\ndef grade(e, c):\n print('1.0', flush=True)\n os._exit(0)", "ended before"),
    "exits politely": ("import sys\ndef grade(e, c): sys.exit(0)", "SystemExit"),
    "returns nothing": ("def grade(e, c): print('1.0')", "returned None;"),
    "returns NaN": ("def grade(e, c): return float('nan')", "returned nan;"),
    "returns less than 0": ("def grade(e, c): return -0.5", "returned -0.5;"),
    "returns text": ("def grade(e, c): return '1'", "returned '1';"),
    "returns a list": ("def grade(e, c): return [1.0]", "returned [1.0];"),
    "returns a number that lies": (
        "class F(float):\n def __repr__(s): return '1.0'\n def __le__(s, o): return True\ndef grade(e, c): return F(7)",
        "returned 7.0;",
    ),
    "returns text that lies": ("class S(str):\n def __eq__(s, o): return True\ndef grade(e, c): return S('1')", "'1';"),
    "patches builtins": (
        "import builtins\nbuiltins.ascii = lambda x: '1'\ndef grade(e, c): return 'x'",
        "returned 'x'",
    ),
    "fills the memory": ("def grade(e, c): return len('a' * 10**10)", "MemoryError"),
    "raises": ("def grade(e, c):\n\n return 1 / 0", "line 3: ZeroDivisionError: division by zero"),
    "fails at import": ("raise ValueError('no')", "line 1: ValueError: no"),
    "defines another name": ("grade = 1", "does not define"),
}


@pytest.mark.parametrize("source", RETURNS)
def test_program_gives_the_score_that_it_returns(source):
    assert grade_with_program(PythonFile("/x/grade.py", "grade", source), EXAMPLE, " 4 ") == RETURNS[source]


@pytest.mark.parametrize("name", [*FAILURES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FAILURES)])
def test_program_that_fails_or_lies_is_reported(name):
    source, message = (FAILURES | SLOW_FAILURES)[name]
    with pytest.raises(GradingError) as caught:
        grade_with_program(PythonFile("/x/grade.py", "grade", source), EXAMPLE, "4", limits=LIMITS)
    assert message in str(caught.value)
    assert str(caught.value).startswith("grade.py:grade: ")


class _Fickle:
    name = "python"

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return TaskExample(single_turn(str(index), "a"))

    def grade(self, example, completion):
        if completion == "bad":
            raise GradingError("no")
        return completion == "a"


def test_grading_stops_where_its_callback_raises():
    task, seen = _Fickle(), []

    def stop(count):
        seen.append(count)
        if count == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        grade_completions(task, [(task[0], "a")] * 9, on_graded=stop)
    assert seen == [1, 2]


def test_grades_keep_the_order_of_the_completions_and_failures_score_0():
    task = _Fickle()
    grades = grade_completions(task, [(task[0], text) for text in ("a", "bad", "b", "a")])
    assert [(grade.score, grade.problem) for grade in grades] == [(1.0, ""), (0.0, "no"), (0.0, ""), (1.0, "")]
