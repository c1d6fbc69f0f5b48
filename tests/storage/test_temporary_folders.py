"""Temporary folders disappear with their process, or are found and deleted after it was killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile

import pytest

from nanochat.storage.temporary_folders import delete_dead_folders, find_dead_folders, temporary_folder

DEAD_PID = 999_999_999  # above the largest process id that Linux hands out
KEEP_ONE = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from nanochat.storage.temporary_folders import temporary_folder
with temporary_folder("sandbox") as folder:
    (folder / "program.py").write_text("x")
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def parent(tmp_path, monkeypatch):
    """The folder for temporary folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_folder_is_deleted_at_the_end_of_its_block(parent):
    """Also if an error ends the block, and whatever permissions its folders have."""
    with pytest.raises(ValueError, match="end"), temporary_folder("sandbox") as folder:
        assert folder.parent == parent
        (folder / "inner").mkdir(mode=0)
        raise ValueError("end")
    assert list(parent.iterdir()) == []


def test_folder_of_a_killed_process_is_deleted_and_that_of_a_living_one_is_not(parent):
    command = [sys.executable, "-c", KEEP_ONE, str(parent)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    folders = [process.stdout.readline().strip() for process in processes]
    assert find_dead_folders() == []
    processes[0].send_signal(signal.SIGKILL)
    processes[0].communicate()
    assert [str(folder) for folder in find_dead_folders()] == folders[:1]
    delete_dead_folders()
    assert [str(folder) for folder in parent.iterdir()] == folders[1:]
    processes[1].communicate("\n")
    assert list(parent.iterdir()) == []


def test_only_our_own_folders_that_nobody_locks_are_found(parent):
    """A lock without a process here belongs to another container. Other names and links are nobody's."""
    found, locked = (parent / f"nanochat-sandbox-{DEAD_PID}-{name}" for name in ("found", "locked"))
    for folder in (found, locked, parent / f"nanochat-{DEAD_PID}", parent / "nanochat-traceback-x.txt"):
        folder.mkdir()
    (parent / f"nanochat-sandbox-{DEAD_PID}-link").symlink_to(parent)
    descriptor = os.open(locked, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert find_dead_folders() == [found]
    os.close(descriptor)
    assert find_dead_folders() == [found, locked]
