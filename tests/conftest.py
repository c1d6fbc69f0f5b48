"""Loads the fast BLAS before any test imports MLX, and keeps every test away from the user's folders.

NANOCHAT_TEST_DEVICE=gpu runs the tests on the GPU, in float32.
"""

from __future__ import annotations

import hypothesis
import pytest

from nanochat import runtime

# A busy machine must not fail a test: none is judged by its time.
hypothesis.settings.register_profile("any speed", deadline=None)
hypothesis.settings.load_profile("any speed")

_chosen = runtime.prepare(device=runtime.environment("NANOCHAT_TEST_DEVICE", "cpu"), dtype="float32")


@pytest.fixture(scope="session", autouse=True)
def _device():
    from nanochat.model.device import select_device

    select_device(_chosen.backend)


@pytest.fixture(autouse=True)
def _own_base_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
