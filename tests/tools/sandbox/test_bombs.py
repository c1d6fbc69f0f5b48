"""Programs that reach a limit are ended in time, and leave no process and no file."""

from __future__ import annotations

import time

import pytest

from nanochat.tools.sandbox.run import find_isolation, run_tests
from nanochat.tools.sandbox.settings import Limits

LIMITS = Limits(wall_seconds=0.3, cpu_seconds=1, memory_bytes=256 * 2**20, file_bytes=2**20, output_bytes=4096)
OVER_SECONDS = 45.0  # programs that would run for 60 s or more are ended; start and clean-up may be slow
NOTE_CHARS = len("\n[1,000,000,000 bytes left out]\n")

# These reach a limit. They run alone, because most of them have to be killed.
BOMBS = {
    "forks": "import os\nwhile True:\n try: os.fork()\n except BaseException: pass",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
    "threads that catch refusals": "import threading, time\nthreading.stack_size(32768)\nwhile True:\n"
    " try: threading.Thread(target=time.sleep, args=(60,)).start()\n except BaseException: pass",
    "memory at once": "x = bytearray(10**10)",
    "memory bit by bit": "x = []\nwhile True: x.append(bytearray(10**6))",
    "memory outside Python": "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 10**8))",
    "memory in a number": "x = 9**9**9",
    "endless loop": "while True: pass",
    "endless loop in C": "sum(iter(int, 1))",
    "endless call": "def double(x):\n while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "sleep that ignores signals": "import signal, time\nfor s in range(1, 32):\n"
    " try: signal.signal(s, signal.SIG_IGN)\n except (OSError, ValueError): pass\nwhile True: time.sleep(1)",
    "endless recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "endless output": "while True: print('x' * 1000)",
    "endless error output": "import sys\nwhile True: sys.stderr.write('x' * 1000)",
    "output through the descriptor": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "endless replies": "import os\nwhile True:\n for fd in range(3, 64):\n"
    "  try: os.write(fd, b'\\0\\0\\0\\1 ')\n  except OSError: pass",
    "big file": "f = open('big', 'wb')\nwhile True: f.write(b'x' * 65536); f.flush()",
    "many files": "for i in range(10**6): open(str(i), 'w').write('x' * 1000)",
    "many empty files": "for i in range(10**7): open(str(i), 'w').close()",
    "many deleted files": "import os\nx = []\nwhile True:\n f = open('f', 'wb'); os.remove('f')\n"
    " f.write(b'x' * 10**6); x.append(f)",
    "many open files": "import os; x = [os.open('/dev/null', os.O_RDONLY) for _ in range(10**6)]",
    "all descriptors closed": "import os; os.closerange(0, 256); x = 1 / 0",
    "abort": "import os; os.abort()",
    "crash": "import ctypes; ctypes.string_at(0)",
    "kill itself": "import os\nwhile True: os.kill(os.getpid(), 9)",
    "interrupt": "raise KeyboardInterrupt",
    "syntax error": "def f(:",
    "null byte": "\0",
    "lone surrogate": "print('\\ud800')",
    "lone surrogate in the source": "\ud800",
    "input": "input()",
}


@pytest.mark.parametrize("name", BOMBS)
def test_programs_are_ended_at_their_limits(name, sandboxes):
    check_that_it_is_ended(name, find_isolation())


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_programs_are_ended_at_their_limits_in_every_isolation(name, isolation, sandboxes):
    check_that_it_is_ended(name, isolation)


def check_that_it_is_ended(name, isolation):
    """Check that the program fails in time and that its output is bounded. The fixture finds what is left."""
    start = time.monotonic()
    outcome = run_tests(BOMBS[name], "double(1)", functions=["double"], limits=LIMITS, isolation=isolation)
    assert not outcome.passed, outcome
    assert time.monotonic() - start < OVER_SECONDS
    assert max(len(outcome.stdout), len(outcome.stderr)) <= LIMITS.output_bytes + NOTE_CHARS
