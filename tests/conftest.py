"""Loads the fast BLAS before any test imports MLX, and keeps every test away from the user's folders."""

from __future__ import annotations

import pytest

from nanochat import runtime

runtime.prepare(device="cpu")


@pytest.fixture(autouse=True)
def _own_base_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
