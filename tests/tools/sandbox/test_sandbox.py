"""Tests call the functions of a program in another process, as if it were in theirs."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.errors import PreflightError, StageError
from nanochat.storage.temporary_folders import delete_dead_folders
from nanochat.tools.sandbox import run, seatbelt, seccomp, watch
from nanochat.tools.sandbox.run import find_isolation, run_tests
from nanochat.tools.sandbox.settings import Limits

LIMITS = Limits(wall_seconds=0.6, cpu_seconds=1, memory_bytes=256 * 2**20, file_bytes=2**20, output_bytes=4096)
ROOMY = LIMITS._replace(wall_seconds=20.0, cpu_seconds=20)  # programs that end by themselves, on a busy machine


def run_in(isolation, program, tests, *, functions=("f",), limits=ROOMY, **options):
    return run_tests(program, tests, functions=functions, limits=limits, isolation=isolation, **options)


ORDINARY = """
import collections, concurrent.futures, dataclasses, hashlib, heapq, itertools, json, math, os, random, re, string, sys
import tempfile, threading, typing

@dataclasses.dataclass
class Point:
    x: "int"

class Pair(typing.NamedTuple):
    a: int

def f():
    with open("notes.txt", "w") as file:
        file.write("kept")
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x")
    os.rename("notes.txt", "renamed.txt")
    assert open("renamed.txt").read() == "kept"
    assert os.listdir() == ["renamed.txt"]
    assert hashlib.md5(b"").hexdigest() == "d41d8cd98f00b204e9800998ecf8427e"
    assert typing.get_type_hints(Point) == {"x": int}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
    assert set(os.environ) <= {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "PYTHONHASHSEED"}
    try:
        import numpy
    except ImportError:
        pass
    print(Point(1), Pair(2), "größe")
    print("careful", file=sys.stderr)
    return __name__

if __name__ == "__main__":
    raise SystemExit
"""


def test_an_ordinary_program_passes(isolation, sandboxes):
    """Programs may compute, start threads, import the standard library, print, and use files of their own."""
    outcome = run_in(isolation, ORDINARY, "assert f() != '__main__'")
    assert outcome.passed, outcome
    assert outcome.message == ""
    assert (outcome.stdout, outcome.stderr) == ("Point(x=1) Pair(a=2) größe\n", "careful\n")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("def f(): return 2", "AssertionError: two\nassert f() == 1, 'two'"),
        ("def f(): return [][1]", "IndexError: list index out of range\nassert f() == 1, 'two'"),
        ("class Own(Exception): pass\ndef f(): raise Own('bad')", "Own: bad\nassert f() == 1, 'two'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax (program.py, line 1)"),
        ("f = 1", "NameError: the program does not define the function f"),
        ("def f(x): return 1", "TypeError: f() missing 1 required positional argument: 'x'\nassert f() == 1, 'two'"),
        ("def f(): return 'a' * 10**10", "MemoryError\nassert f() == 1, 'two'"),
        ("import os\ndef f(): os._exit(0)", "the program ended before it returned\nassert f() == 1, 'two'"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
    ],
)
def test_the_outcome_says_why_the_tests_failed(program, message, sandboxes):
    outcome = run_in(find_isolation(), program, "assert f() == 1, 'two'")
    assert not outcome.passed
    assert outcome.message == message


def test_the_outcome_says_that_time_is_up(isolation, sandboxes):
    outcome = run_in(isolation, "def f():\n while True: pass", "f()", limits=LIMITS)
    assert (outcome.passed, outcome.message) == (False, "took longer than 0.6 s")


def test_tests_have_limits_too(isolation, sandboxes):
    """A program cannot pass by keeping its tests from ending."""
    slow = run_in(isolation, "def f(): return 1", "while True: f()", limits=LIMITS)
    large = run_in(isolation, "def f(): return range(10**12)", "list(f())", limits=ROOMY)
    assert (slow.passed, large.passed) == (False, False)
    assert large.message.startswith("MemoryError")


@pytest.mark.parametrize("size", [1, 200_000])
def test_a_program_cannot_fill_the_disk(size, isolation, sandboxes):
    """Its files are limited in number and in size together."""
    program = f"def f():\n for n in range(10**6): open(str(n), 'w').write('x' * {size})"
    outcome = run_in(isolation, program, "f()")
    assert not outcome.passed
    assert re.search("wrote too many files, or too much|No space left", outcome.message)


def test_the_error_of_a_program_is_in_its_output(sandboxes):
    outcome = run_in(find_isolation(), "def g(x): return x.y\ndef f(): return g(1)", "f()")
    assert outcome.stderr == (
        'Traceback (most recent call last):\n  File "program.py", line 2, in f\n  File "program.py", line 1, in g\n'
        "AttributeError: 'int' object has no attribute 'y'\n"
    )


def test_start_and_end_of_long_output_are_kept(isolation, sandboxes):
    """Much output does not fail a program. What it printed last is kept, as an error would be."""
    source = "def f():\n print('first')\n for n in range(100_000): print('x' * 9)\n print('last')\n return 1"
    outcome = run_in(isolation, source, "assert f() == 1")
    assert outcome.passed, outcome
    lost = len("first\n") + 100_000 * 10 + len("last\n") - ROOMY.output_bytes
    head, note, tail = outcome.stdout.partition(f"\n[{lost:,} bytes left out]\n")
    assert note, outcome.stdout[2000:2200]
    assert (len(head), len(tail)) == (2048, 2048)
    assert head.startswith("first\nxxxxxxxxx\n")
    assert tail.endswith("\nxxxxxxxxx\nlast\n")


def test_the_hash_seed_is_fixed(sandboxes):
    """Otherwise the order of sets could change whether a program passes."""
    source = "print(hash('a'))\ndef f(): pass"
    runs = {run_in(find_isolation(), source, "f()").stdout for _ in range(3)}
    assert len(runs) == 1


def test_arguments_and_results_keep_their_types(isolation, sandboxes):
    """The tests see what the function returns, or a change of its arguments, as plain data of the same types."""
    program = "def f(x, *, key=None): return [x, key, type(x).__name__]\ndef g(x): x.append(x.pop(0)); x[0]['a'] = 1"
    tests = (
        "for value in (None, True, 1, 10**9999, .5, 1j, 'a', b'a', [1], (1,), {1: 2}, {1}, frozenset([1]), range(3)):\n"
        "    result, named, kind = f(value, key=(value, value))\n"
        "    assert result == value and type(result) is type(value) and kind == type(value).__name__\n"
        "    assert named == (value, value) and type(named) is tuple\n"
        "inner = {}\nargument = [0, inner]\n"
        "assert g(argument) is None\n"
        "assert argument == [{'a': 1}, 0]"
    )
    outcome = run_in(isolation, program, tests, functions=("f", "g"))
    assert outcome.passed, outcome


def test_tests_can_expect_an_exception(sandboxes):
    """Built-in exceptions cross by name."""
    program = "def f(x):\n x.append(1)\n raise ValueError('wrong')"
    tests = (
        "argument = []\ntry: f(argument)\nexcept ValueError as error: assert str(error) == 'wrong'\n"
        "else: assert False\nassert argument == [1]"
    )
    assert run_in(find_isolation(), program, tests).passed
    assert not run_in(find_isolation(), program.replace("ValueError", "KeyError"), tests).passed


def test_a_program_that_ended_fails_whatever_the_tests_make_of_it(sandboxes):
    tests = "try: f()\nexcept Exception: pass"
    assert run_in(find_isolation(), "def f(): raise ValueError", tests).passed
    assert not run_in(find_isolation(), "import os\ndef f(): os._exit(0)", tests).passed


def test_setup_runs_before_the_tests_and_yields_to_the_program(sandboxes):
    """The program does not see it, and its functions replace those of the same name."""
    setup = "import math\ndef f(): return 'setup'\ndef twice(x): return 2 * x"
    tests = "assert twice(f()) == math.floor(2.5) and f() == 1"
    program = "def f():\n assert 'twice' not in globals()\n return 1"
    outcome = run_in(find_isolation(), program, tests, setup=setup)
    assert outcome.passed, outcome


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of the parent")
def test_a_sandbox_ends_when_its_caller_is_killed(isolation, sandboxes, processes_of):
    """Only the temporary folder is left, and the next command finds it."""
    script = (
        "from nanochat.tools.sandbox.run import run_tests\nfrom nanochat.tools.sandbox.settings import Limits\n"
        "import sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "run_tests('import time; time.sleep(60)', '', functions=[], limits=Limits(60.0), isolation=sys.argv[2])"
    )
    caller = subprocess.Popen([sys.executable, "-c", script, str(sandboxes), isolation])
    deadline = time.monotonic() + 20
    while len(processes_of(sandboxes)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(processes_of(sandboxes)) >= 3
    caller.kill()
    caller.wait()
    while processes_of(sandboxes) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes_of(sandboxes) == []
    assert len(list(sandboxes.iterdir())) == 1
    delete_dead_folders()


def test_a_program_that_was_suspended_is_not_out_of_time(monkeypatch):
    """Ctrl-Z suspends the program together with the stage, whose clock continues."""
    isolation, real, began = find_isolation(), time.monotonic, time.monotonic()

    def monotonic() -> float:
        now = real()
        return now + (1000 if now > began + 0.2 else 0)  # during a poll

    monkeypatch.setattr("nanochat.tools.sandbox.watch.time.monotonic", monotonic)
    outcome = run_in(isolation, "import time\ndef f(): time.sleep(0.5)", "f()")
    assert (outcome.passed, monotonic() > began + 1000) == (True, True), outcome


def test_the_clock_starts_when_the_sandbox_is_ready(sandboxes, monkeypatch):
    """A sandbox that takes longer than the limit for its start is an error."""
    monkeypatch.setattr(watch, "_COMMAND", f"import time; time.sleep(1); {watch._COMMAND}")
    began = time.monotonic()
    outcome = run_in(find_isolation(), "def f(): pass", "f()", limits=ROOMY._replace(wall_seconds=0.9))
    assert (outcome.passed, time.monotonic() - began > 1) == (True, True), outcome
    monkeypatch.setattr(watch, "_START_SECONDS", 0.2)
    with pytest.raises(StageError, match="could not be set up: not ready after"):
        run_in(find_isolation(), "def f(): pass", "f()")


@pytest.fixture
def no_isolation(monkeypatch):
    """A machine on which one isolation is known, and does not work."""
    monkeypatch.setattr(run, "_CANDIDATES", {sys.platform: ("seatbelt" if sys.platform == "linux" else "landlock",)})
    run._try_isolations.cache_clear()
    yield
    run._try_isolations.cache_clear()


def test_programs_without_isolation_are_refused_unless_that_is_accepted(no_isolation, sandboxes):
    """The error gives the reason. Where it is accepted, the program has limits and an environment of its own."""
    with pytest.raises(PreflightError, match=r"cannot isolate programs that a model writes .*could not be set up"):
        run_tests("def f(): return 1", "assert f() == 1", functions=["f"])
    assert find_isolation(accept_none=True) == "none"
    assert run_in("none", ORDINARY, "f()").passed
    assert not run_in("none", "def f():\n while True: pass", "f()", limits=LIMITS).passed


def test_numbers_of_system_calls_are_those_of_the_kernel():
    """Of both architectures, as far as the kernel's headers are installed."""
    headers = {0: "x86_64-linux-gnu/asm/unistd_64.h", 1: "asm-generic/unistd.h"}
    found = {column: Path("/usr/include") / name for column, name in headers.items()}
    if not any(path.exists() for path in found.values()):
        pytest.skip("the kernel's headers are not installed")
    for column, path in found.items():
        if not path.exists():
            continue
        kernel = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text()))
        renamed = {"newfstatat": "fstatat"} if column == 1 else {}
        for table in (seccomp._ALLOWED, seccomp._CHECKED):
            for name, number in seccomp._numbers(table, column):
                assert kernel[renamed.get(name, name)] == str(number), name


def test_the_profile_for_macos_denies_what_it_does_not_name(tmp_path):
    """Paths are quoted, so that no name can add a rule. Those that links lead to are named as well."""
    (tmp_path / "link").symlink_to("/usr/lib")
    profile = seatbelt.profile([str(tmp_path / "link"), '/odd") (allow default) ("'], "/private/tmp/own")
    assert f'(subpath "{Path("/usr/lib").resolve()}")' in profile
    assert "(deny default)" in profile
    assert "(allow default)" not in re.sub(r'"(?:[^"\\]|\\.)*"', "", profile)
    assert re.findall(r"file-write\S* \(([^)]*)\)", profile) == ['literal "/dev/null"', 'subpath "/private/tmp/own"']
    assert "network" not in profile
    assert "process" not in profile
