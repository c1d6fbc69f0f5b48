"""The verbs of `nanochat-run` without a recipe or a run: ui (the MLflow web page) and verify."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

from nanochat import runtime
from nanochat.errors import PreflightError, RecipeError, StageError
from nanochat.recipe.check.tracking_values import find_wrong_address
from nanochat.runner.upload.web_page import PageServer, page_on_server, page_server
from nanochat.tracking.store_address import resolve_uri

_STOP_SECONDS, _POLL_SECONDS = 5.0, 0.05


def ui(options: argparse.Namespace) -> None:
    """Serve the MLflow web page with the results of the working directory, until interrupted."""
    uri = resolve_uri(options.uri, Path.cwd())
    if (wrong := find_wrong_address(uri)) is not None:
        if options.uri:
            raise RecipeError(f"--uri {options.uri}: {wrong}")
        raise PreflightError(f"MLFLOW_TRACKING_URI is `{uri}`: {wrong}")
    if (page := page_on_server(uri)) is not None:
        print(f"the results are on a server: open {page}")
        return
    server = page_server(uri, options.port, runtime.base_dir())
    print(server.notice)
    _serve(server)


def _serve(server: PageServer) -> None:
    """Run the server until it ends, or a signal ends it with all its processes.

    It has a process group of its own, so Ctrl-C reaches only this process. What it prints is passed on, but not the
    tracebacks that it prints when it is stopped.
    """
    for name, value in {**server.environment, "PYTHONUNBUFFERED": "1"}.items():
        runtime.set_environment(name, value)
    pipe, merged = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(
        server.command,
        cwd=server.folder,
        stdin=subprocess.DEVNULL,
        stdout=pipe,
        stderr=merged,
        encoding="utf-8",
        errors="replace",
        process_group=0,
    ) as process:
        assert process.stdout is not None, "it is a pipe"
        try:
            for line in process.stdout:
                print(line, end="")
            code = process.wait()
        except BaseException:
            _end_group(process)
            raise
    raise StageError(f"the server ended with exit status {code}")


def _end_group(leader: subprocess.Popen[str]) -> None:
    """End a process and those that it started, which may outlive it."""
    deadline = time.monotonic() + _STOP_SECONDS
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            leader.poll()
            os.killpg(leader.pid, 0)
            time.sleep(_POLL_SECONDS)
        os.killpg(leader.pid, signal.SIGKILL)


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
