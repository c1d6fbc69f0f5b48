"""What holds for every test: the fast BLAS before MLX, folders apart from the user's, one process for MLflow.

NANOCHAT_TEST_DEVICE=gpu runs the tests on the GPU, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

from nanochat import runtime

# A busy machine must not fail a test: none is judged by its time.
hypothesis.settings.register_profile("any speed", deadline=None)
hypothesis.settings.load_profile("any speed")

_TRACKING = Path(__file__).with_name("tracking")
_chosen = runtime.prepare(device=runtime.environment("NANOCHAT_TEST_DEVICE", "cpu"), dtype="float32")


@pytest.fixture(scope="session", autouse=True)
def _device():
    from nanochat.model.device import select_device

    select_device(_chosen.backend)


@pytest.fixture(autouse=True)
def _own_base_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden texts instead of comparing them")


@pytest.fixture
def check_golden(request) -> Callable[[str, Path], None]:
    """Return a check that a text equals a golden file; under `--update-golden` it rewrites the file instead."""

    def check(text: str, path: Path) -> None:
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return check


def pytest_collection_modifyitems(items):
    """Several processes of tests: one takes all that need MLflow, whose import and first database take seconds."""
    for item in items:
        if "fresh_database" in item.fixturenames or item.path.is_relative_to(_TRACKING):
            item.add_marker(pytest.mark.xdist_group("mlflow"))


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory) -> Path:
    """An MLflow database with the schema in it: creating one takes seconds, copying it none."""
    from nanochat.tracking.mlflow_store import open_store

    path = tmp_path_factory.mktemp("fresh") / "mlflow.db"
    open_store(f"sqlite:///{path}", "unused")
    return path
