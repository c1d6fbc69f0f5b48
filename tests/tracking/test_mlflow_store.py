"""Tests of which store is used, and that its address is shown without secrets."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from nanochat.tracking.mlflow_store import TrackingOutageError, open_store
from nanochat.tracking.store_address import resolve_experiment, resolve_uri, show_uri


def test_resolve_uri_prefers_recipe_then_environment_then_local_database(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert resolve_uri(None, tmp_path) == "http://host:5000"
    assert resolve_uri("sqlite:///sub/a.db", tmp_path) == f"sqlite:///{tmp_path}/sub/a.db"


def test_resolve_experiment_prefers_recipe_then_environment(monkeypatch):
    """MLflow too prefers what a program sets over its environment."""
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert resolve_experiment(None) == "nanochat"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    assert resolve_experiment(None) == "from the environment"
    assert resolve_experiment("from the recipe") == "from the recipe"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:secret@host:5000/x", "https://host:5000/x"),
        ("postgresql://h/runs?sslmode=require&password=x", "postgresql://h/runs?sslmode=require"),
        ("mysql://me:p@ss@h/runs?charset=utf8", "mysql://h/runs?charset=utf8"),
        ("sqlite:////a/me@b.db", "sqlite:////a/me@b.db"),
        ("me:hunter2@host:5000", "host:5000"),
        ("http://me:hunter2@[::1", "[::1"),
    ],
)
def test_show_uri_removes_passwords(uri, shown):
    assert show_uri(uri) == shown


def test_credentials_from_the_environment_are_used_but_never_stored_or_shown(tmp_path, monkeypatch, capfd):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization"))
            assert "hunter2" not in self.headers.get("Host") + self.path
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter%322@{address}")
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, "")  # so that monkeypatch restores what MLflow sets
            monkeypatch.delenv(name)
        uri = resolve_uri(None, tmp_path)
        assert uri == f"http://{address}"
        with pytest.raises(TrackingOutageError) as caught:
            open_store(uri, "nanochat")
        server.shutdown()
    assert set(asked) == {"Basic " + base64.b64encode(b"me:hunter22").decode()}
    shown = capfd.readouterr()
    assert "hunter2" not in str(caught.value) + shown.out + shown.err


@pytest.mark.usefixtures("quick_creation")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_database_whose_creation_was_killed_is_created_again(tmp_path, monkeypatch):
    """MLflow itself cannot open a database with only some of its tables."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def killed(engine):
        with engine.begin() as connection:
            connection.exec_driver_sql("create table secrets (id integer)")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._initialize_tables", killed)
        with pytest.raises(KeyboardInterrupt):
            open_store(uri, "nanochat")
    store = open_store(uri, "nanochat")
    assert store.client.get_experiment_by_name("nanochat").experiment_id == store.experiment_id
    assert [path.name for path in tmp_path.glob("*mlflow.db*")] == ["mlflow.db"]


def test_importing_tracking_does_not_import_mlflow():
    """Importing MLflow takes seconds."""
    code = (
        "import sys, nanochat.tracking.uploader, nanochat.tracking.sync, nanochat.tracking.mlflow_store;"
        "print(any(m.split('.')[0] == 'mlflow' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
