"""What signals do to a run: the first stops it, hanging up counts once, and Ctrl-Z suspends all its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from nanochat.runner.process.interrupts import Interrupts


@pytest.fixture
def _hangup_is_handled():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_hangup_is_handled")
def test_hanging_up_counts_once_however_often_it_is_reported():
    """A shell whose terminal closes passes the signal on to its jobs, which have had it from the terminal."""
    with Interrupts() as interrupts:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.count == 1
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.count == 2


@pytest.mark.usefixtures("_hangup_is_handled")
def test_a_hang_up_that_nohup_ignores_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupts.count == 0


def test_signals_have_their_previous_handlers_afterwards():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
    before = [signal.getsignal(number) for number in numbers]
    with Interrupts():
        pass
    assert [signal.getsignal(number) for number in numbers] == before


SUSPENDED_RUN = """
import subprocess, sys, time
from nanochat.runner.process.interrupts import Interrupts
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
with Interrupts(lambda: print("suspends", flush=True)):
    code = f"import subprocess; print(subprocess.Popen({sleep!r}).pid, flush=True); input()"
    child = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=-1, start_new_session=True)
    while True:
        time.sleep(0.01)
"""


def test_ctrl_z_suspends_the_run_with_its_descendants_until_it_is_continued():
    """A stage's process has a session of its own, and starts others, such as those of generated programs."""
    # In a process group of its own, whose parent is in the same session, as a job of a shell: else nobody may stop it.
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED_RUN], stdout=subprocess.PIPE, text=True, process_group=0
    )
    try:
        assert process.stdout is not None
        grandchild = psutil.Process(int(process.stdout.readline()))
        family = [psutil.Process(process.pid), grandchild.parent(), grandchild]
        process.send_signal(signal.SIGTSTP)
        assert process.stdout.readline() == "suspends\n"
        wait_until(lambda: all(one.status() == psutil.STATUS_STOPPED for one in family))
        process.send_signal(signal.SIGCONT)
        wait_until(lambda: all(one.status() != psutil.STATUS_STOPPED for one in family))
        process.send_signal(signal.SIGTSTP)
        wait_until(lambda: all(one.status() == psutil.STATUS_STOPPED for one in family))
    finally:
        for one in psutil.Process(process.pid).children(recursive=True):
            one.kill()
        process.kill()
        process.communicate()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
