"""The verbs of `nanochat-run` without a recipe or a run: ui (the MLflow web page) and verify."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nanochat import runtime
from nanochat.errors import PreflightError, RecipeError, StageError
from nanochat.recipe.check.tracking_values import find_wrong_address
from nanochat.runner.upload.web_page import page_on_server, page_server
from nanochat.tracking.store_address import resolve_uri


def ui(options: argparse.Namespace) -> None:
    """Serve the MLflow web page with the results of the working directory, until interrupted."""
    uri = resolve_uri(options.uri, Path.cwd())
    if (wrong := find_wrong_address(uri)) is not None:
        if options.uri:
            raise RecipeError(f"--uri {options.uri}: {wrong.reason}; write `--uri {wrong.instead}`")
        raise PreflightError(f"MLFLOW_TRACKING_URI is `{uri}`: {wrong.reason}; set MLFLOW_TRACKING_URI={wrong.instead}")
    if (page := page_on_server(uri)) is not None:
        print(f"the results are on a server: open {page}")
        return
    server = page_server(uri, options.port, runtime.base_dir())
    print(server.notice, flush=True)
    for name, value in server.environment.items():
        runtime.set_environment(name, value)
    os.chdir(server.folder)
    # The server replaces this process, so that a signal to this process stops the server.
    os.execv(server.command[0], server.command)


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
