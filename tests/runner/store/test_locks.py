"""Tests that only one run computes a stage at a time, and that a lock ends with its holder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest

from nanochat.errors import LockError, PreflightError
from nanochat.runner.store.locks import is_locked, stage_lock, sweep_lock
from nanochat.runner.store.provenance import host_name, is_alive, process_started
from nanochat.storage.layout import StageFolder, SweepFolder

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


@pytest.mark.parametrize("name", [None, "renamed"])
def test_stage_lock_is_kept_by_a_child_that_outlives_its_parent(folder, monkeypatch, name):
    """The child inherits the open lock file, so a stage folder never has two writers.

    Whether its parent has ended does not depend on the name of the host, which may have changed in the meantime.
    """
    code = (
        "import subprocess, sys\nfrom pathlib import Path\nfrom nanochat.storage.layout import StageFolder\n"
        "from nanochat.runner.store.locks import stage_lock\n"
        "with stage_lock(StageFolder(Path(sys.argv[1]))) as lock:\n"
        "    child = subprocess.Popen(['sleep', '300'], pass_fds=(lock.descriptor,), stdout=-3, stderr=-3)\n"
        "    lock.name_child(child.pid)\n    print(child.pid, flush=True)\n    import os; os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder.path)], capture_output=True, text=True)
    child = int(done.stdout)
    if name is not None:
        monkeypatch.setattr("platform.node", lambda: name)
    with pytest.raises(LockError, match=f"pid {child};"), stage_lock(folder, orphan_wait_seconds=0):
        pass
    threading.Timer(0.5, os.kill, (child, signal.SIGKILL)).start()
    with stage_lock(folder, orphan_wait_seconds=60):
        assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_child_that_was_suspended_when_its_parent_was_killed_gives_the_lock_free(folder):
    """A process that is stopped cannot notice that its parent has ended. This one ends as soon as it is continued."""
    code = (
        "import os, subprocess, sys\nfrom pathlib import Path\nfrom nanochat.storage.layout import StageFolder\n"
        "from nanochat.runner.store.locks import stage_lock\n"
        "with stage_lock(StageFolder(Path(sys.argv[1]))) as lock:\n"
        "    suspended = ['sh', '-c', 'kill -STOP $$']\n"
        "    child = subprocess.Popen(suspended, pass_fds=(lock.descriptor,), stdout=-3, start_new_session=True)\n"
        "    os.waitpid(child.pid, os.WUNTRACED)\n    lock.name_child(child.pid)\n    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder.path)], stderr=subprocess.DEVNULL)
    with stage_lock(folder, orphan_wait_seconds=60) as lock:
        assert lock.taken_over_from.child_pid is not None


def test_a_run_in_progress_is_known_by_its_lock_on_any_machine(folder, monkeypatch):
    """A process of another machine, or of another container, cannot be looked up by its number here."""
    with holder(folder) as other:
        monkeypatch.setattr("nanochat.runner.store.locks.machine_id", lambda: "another")
        monkeypatch.setattr("nanochat.runner.store.locks.is_alive", lambda pid, started: False)
        assert is_locked(folder)
        other.kill()
        other.wait()
        assert not is_locked(folder)


def test_a_process_stays_the_same_when_the_clock_is_set(monkeypatch):
    began = process_started()
    monkeypatch.setattr("psutil.boot_time", lambda: 3600.0)
    monkeypatch.setattr("time.time", lambda: 7200.0)
    assert is_alive(os.getpid(), began)
    assert not is_alive(os.getpid(), began + 1)
    assert not is_alive(2**22 - 3, 0.0)


def test_a_file_system_without_locks_is_refused_with_a_remedy(folder, monkeypatch):
    """Those who only look go by the process that the file names: dead, alive, or of another machine."""
    with holder(folder) as other:

        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", flock)
        with pytest.raises(PreflightError, match=r"No locks available.*NANOCHAT_BASE_DIR"), stage_lock(folder):
            pass
        assert is_locked(folder)
        other.kill()
        other.wait()
        assert not is_locked(folder)
        monkeypatch.setattr("nanochat.runner.store.locks.machine_id", lambda: "another")
        assert is_locked(folder)


def test_sweep_whose_command_was_killed_on_another_machine_is_not_locked_on_nfs(tmp_path, locks_of_nfs):
    """Nothing is known about that process, so only the lock shows that it has ended."""
    folder = SweepFolder(tmp_path)
    folder.lock.write_text(json.dumps({"host": "node7", "pid": 1, "started": 1.0, "machine": "another"}))
    assert not is_locked(folder)
    with sweep_lock(folder, is_shared=True):
        assert is_locked(folder)
