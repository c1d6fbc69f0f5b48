"""Tests that only one run computes a stage at a time, and that a lock ends with its holder."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from nanochat.errors import LockError
from nanochat.runner.store.locks import is_locked, stage_lock
from nanochat.runner.store.provenance import host_name
from nanochat.storage.layout import StageFolder

HOLD = """
import sys, time
from pathlib import Path
from nanochat.storage.layout import StageFolder
from nanochat.runner.store.locks import stage_lock
with stage_lock(StageFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path) -> StageFolder:
    return StageFolder(tmp_path / "pretrain" / "abc")


def holder(folder: StageFolder) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_stage_lock_names_host_and_pid_of_a_living_holder(folder):
    with holder(folder) as other:
        try:
            with pytest.raises(LockError, match=f"host {host_name()}, pid {other.pid};"), stage_lock(folder):
                pass
            assert is_locked(folder)
        finally:
            other.kill()


def test_stage_lock_waits_while_another_process_is_only_probing(folder):
    """`is_locked` holds the lock for an instant without naming itself, which must not turn a run away."""
    folder.path.mkdir(parents=True)
    with folder.lock.open("w") as asking:
        fcntl.flock(asking, fcntl.LOCK_EX)
        threading.Timer(0.2, fcntl.flock, (asking, fcntl.LOCK_UN)).start()
        with stage_lock(folder):
            pass


def test_stage_lock_is_taken_over_from_a_killed_process(folder):
    with holder(folder) as other:
        other.kill()
        other.wait()
        with stage_lock(folder) as lock:
            assert lock.taken_over_from.pid == other.pid
    with stage_lock(folder) as lock:
        assert lock.taken_over_from is None


def test_stage_lock_is_kept_by_a_child_that_outlives_its_parent(folder):
    """The child inherits the open lock file, so a stage folder never has two writers."""
    code = (
        "import subprocess, sys\nfrom pathlib import Path\nfrom nanochat.storage.layout import StageFolder\n"
        "from nanochat.runner.store.locks import stage_lock\n"
        "with stage_lock(StageFolder(Path(sys.argv[1]))) as lock:\n"
        "    child = subprocess.Popen(['sleep', '300'], pass_fds=(lock.descriptor,), stdout=-3, stderr=-3)\n"
        "    lock.name_child(child.pid)\n    print(child.pid, flush=True)\n    import os; os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True)
    child = int(done.stdout)
    with pytest.raises(LockError, match=f"pid {child};"), stage_lock(folder, orphan_wait_seconds=0):
        pass
    threading.Timer(0.5, os.kill, (child, signal.SIGKILL)).start()
    with stage_lock(folder, orphan_wait_seconds=60):
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
