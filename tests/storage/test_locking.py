"""Locks on files."""

from __future__ import annotations

import pytest

from nanochat.storage.locking import waiting_lock


@pytest.mark.parametrize("shared", [False, True])
def test_waiting_lock_can_be_held_on_nfs(tmp_path, locks_of_nfs, shared):
    with waiting_lock(tmp_path / "lock", shared=shared):
        assert (tmp_path / "lock").read_bytes() == b""
