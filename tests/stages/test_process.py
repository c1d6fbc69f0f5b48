"""How a stage's process ends: exit codes, last words, signals, and a parent that dies."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time

import pytest

from nanochat.errors import OUT_OF_MEMORY, InterruptedRun, PreflightError, StageError
from nanochat.plan.specs import Job
from nanochat.stages.__main__ import main
from nanochat.stages.process.exit import run_guarded


def job_in(tmp_path, tokenizer_spec):
    return Job(spec=tokenizer_spec, execution={}, stage_dir=str(tmp_path), upstream={})


ENDS = {
    "user's error": (PreflightError("no such source"), 3, "no such source\n"),
    "failed": (StageError("diverged"), 4, "diverged\n"),
    "stopped": (InterruptedRun("saved at step 3"), 75, "saved at step 3\n"),
    "memory": (MemoryError(), OUT_OF_MEMORY, "ran out of memory (MemoryError)"),
    "memory of MLX": (RuntimeError("[malloc] Unable to allocate 9 bytes."), OUT_OF_MEMORY, "allocate 9 bytes"),
    "memory of Metal": (RuntimeError("[METAL] failed: Insufficient Memory"), OUT_OF_MEMORY, "Insufficient Memory"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), 4, "make room"),
    "bug": (RuntimeError("shapes (3) and (4)"), 1, "Traceback (most recent call last)"),
}


@pytest.mark.parametrize(("error", "code", "words"), ENDS.values(), ids=ENDS.keys())
def test_every_end_has_its_exit_code_and_last_words(tmp_path, tokenizer_spec, error, code, words):
    def run():
        raise error

    assert run_guarded(job_in(tmp_path, tokenizer_spec), run) == code
    assert words in (tmp_path / "error.txt").read_text()


def test_without_a_job_it_says_how_it_is_used(capsys):
    assert main([]) == 2
    assert "JOB.json" in capsys.readouterr().err


WAITS = """
import sys, time
from nanochat.stages.process.signals import StopFlag
flag = StopFlag(is_final={is_final})
flag.install()
print("ready", flush=True)
began = time.monotonic()
while time.monotonic() - began < 30:
    if flag() and not {keeps_going}:
        print("saved", flush=True)
        sys.exit(75)
    time.sleep(0.01)
"""


def start(*, is_final=False, keeps_going=False):
    code = WAITS.format(is_final=is_final, keeps_going=keeps_going)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_asks_to_save_and_stop(number):
    process = start()
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("saved\n", 75)


def test_two_signals_at_once_are_one_press(tmp_path):
    """A terminal's Ctrl-C may come from the terminal and from the parent: that must not skip the saving."""
    process = start()
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("saved\n", 75)


def test_a_later_second_signal_ends_the_process_at_once():
    process = start(keeps_going=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert (out, process.returncode) == ("", 75)


def test_work_with_nothing_to_save_ends_at_the_first_signal():
    process = start(is_final=True, keeps_going=True)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 75


ORPHAN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {code!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
"""


def test_a_stage_ends_with_its_parent():
    """Else it would go on writing into a folder that a new run takes over."""
    parent = [sys.executable, "-c", ORPHAN.format(code=WAITS.format(is_final=False, keeps_going=True))]
    pid = int(subprocess.run(parent, capture_output=True, text=True, check=True, timeout=30).stdout)
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, "the orphan lives on"
        time.sleep(0.05)


def is_running(pid):
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(listed) and not listed.startswith("Z")
