"""Which store is used, and that its address is shown without secrets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nanochat.tracking.store import resolve_uri, show_uri


def test_the_recipe_wins_over_the_environment_over_a_local_database(tmp_path, monkeypatch):
    """The order of precedence."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert resolve_uri(None, tmp_path) == "http://host:5000"
    assert resolve_uri("sqlite:///sub/a.db", tmp_path) == f"sqlite:///{tmp_path}/sub/a.db"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [("https://me:secret@host:5000/x", "https://host:5000/x"), ("sqlite:////a/b.db", "sqlite:////a/b.db")],
)
def test_a_shown_address_has_no_password(uri, shown):
    """Credentials never reach a log."""
    assert show_uri(uri) == shown


def test_importing_the_room_does_not_import_mlflow():
    """MLflow costs seconds; only opening a store pays them."""
    code = (
        "import sys, nanochat.tracking.uploader, nanochat.tracking.sync, nanochat.tracking.store;"
        "print(any(m.split('.')[0] == 'mlflow' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
