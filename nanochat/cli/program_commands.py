"""The verbs that start another program: the MLflow page, and the seven verifications."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

from nanochat import runtime
from nanochat.errors import PreflightError, StageError
from nanochat.tracking.store import database_path, resolve_uri, show_uri

# As it comes, `mlflow ui` starts 15 processes that take 2.4 GB; in this form 2 and 0.5 GB.
_LIGHT = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def ui(options: argparse.Namespace) -> None:
    """Serve the MLflow page of this folder's results until interrupted."""
    uri = resolve_uri(options.uri, Path.cwd())
    path = database_path(uri)
    if path is None:
        print(f"the results are on a server: {show_uri(uri)}/?workflowType=machine_learning")
        return
    if not path.exists():
        raise PreflightError(f"no {path} yet: run a recipe here first, as with `nanochat-run recipes/quickstart.yaml`")
    if _is_taken(options.port):
        raise PreflightError(f"port {options.port} is taken, perhaps by another page: choose one with `--port`")
    for name, value in _LIGHT.items():
        runtime.set_environment(name, value)
    print(f"open http://127.0.0.1:{options.port}/?workflowType=machine_learning (Ctrl-C ends)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    # In place of this process, so that whoever ends it ends the server.
    os.execv(sys.executable, [*command, "--port", str(options.port), "--workers", "1"])


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def verify(_options: argparse.Namespace) -> None:
    """Run the verifications in a process of their own, which prints them."""
    done = subprocess.run([sys.executable, "-m", "nanochat.stages.verify"], check=False)
    if done.returncode != 0:
        raise StageError("a verification failed: this machine or installation does not compute what it should")
