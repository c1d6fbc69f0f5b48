"""Locks on files."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from nanochat.storage.locking import waiting_lock


@pytest.mark.parametrize("shared", [False, True])
def test_waiting_lock_opens_its_file_as_nfs_demands(tmp_path, monkeypatch, shared):
    """NFS turns `flock` into locks of byte ranges: a shared one needs a file that is open for reading, see flock(2)."""
    flock = fcntl.flock

    def flock_on_nfs(descriptor, operation):
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_WRONLY if operation & fcntl.LOCK_SH else os.O_RDONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_on_nfs)
    with waiting_lock(tmp_path / "lock", shared=shared):
        assert (tmp_path / "lock").read_bytes() == b""
