"""The verbs of `nanochat-run` without a recipe or a run: ui (the MLflow web page) and verify."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from nanochat import runtime
from nanochat.errors import PreflightError, StageError
from nanochat.tracking.store_address import database_path, resolve_uri, show_uri

# By default `mlflow ui` starts 15 processes that use 2.4 GB. With these settings it starts 2 that use 0.5 GB.
_SMALL_SERVER = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def ui(options: argparse.Namespace) -> None:
    """Serve the MLflow web page with the results of the working directory, until interrupted."""
    uri = resolve_uri(options.uri, Path.cwd())
    path = database_path(uri)
    if path is None:
        print(f"the results are on a server: open {show_uri(uri)}/?workflowType=machine_learning")
        return
    if not path.exists():
        raise PreflightError(
            f"{path} does not exist; run a recipe first, for example `nanochat-run recipes/quickstart.yaml`"
        )
    if _is_taken(options.port):
        raise PreflightError(f"port {options.port} is already in use; choose another one with `--port`")
    for name, value in _SMALL_SERVER.items():
        runtime.set_environment(name, value)
    print(f"open http://127.0.0.1:{options.port}/?workflowType=machine_learning (Ctrl-C stops the server)", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    # The server replaces this process, so that a signal to this process stops the server.
    os.execv(sys.executable, [*command, "--port", str(options.port), "--workers", "1"])


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def verify(options: argparse.Namespace) -> None:
    """Print whether MLX computes the model correctly on this machine, one line per check."""
    chosen = runtime.prepare(options.device, "float32")
    from nanochat.model.device import select_device
    from nanochat.stages.verify import run_checks

    select_device(chosen.backend)
    print(chosen.describe())
    results = run_checks()
    for result in results:
        print(f"{'ok  ' if result.passed else 'FAIL'} {result.name}: {result.detail}")
    failed = sum(not result.passed for result in results)
    print(f"{len(results) - failed} of {len(results)} checks passed")
    if failed:
        raise StageError("a check failed: this machine or its installation of MLX computes wrong results")
