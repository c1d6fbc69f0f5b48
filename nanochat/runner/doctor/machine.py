"""Examines this machine: system, processor, memory, disk, isolation of programs, and the connection to the hub.

Not here: the installed packages (`software`), and the base folder (`base_folder`).
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nanochat import runtime
from nanochat.data.hub.access import endpoint, read_token
from nanochat.data.places.attempts import StatusError, TemporaryError
from nanochat.data.places.connection import Place, is_offline, open_place
from nanochat.errors import PreflightError
from nanochat.plan.quantities import show_bytes
from nanochat.runner.doctor.finding import Finding
from nanochat.runner.store.provenance import describe_version
from nanochat.storage.file_errors import REMOVE_RUNS
from nanochat.tools.sandbox.run import find_isolation

_CPU_INFO = Path("/proc/cpuinfo")
_LOW_MEMORY_BYTES, _LOW_DISK_BYTES = 2**30, 2 * 2**30
"""The quickstart needs half of this memory, and a tenth of this disk space."""
_UNREACHABLE = (
    "recipes that download data need it: check the network and HTTPS_PROXY, or use `--offline` with data from"
    " `nanochat-run fetch`; the quickstart needs no network"
)


def examine_machine(base: Path) -> Iterator[Finding]:
    """Yield the findings of the machine."""
    yield Finding("nanochat", describe_version())
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("system", platform.platform())
    yield Finding("processor", f"{_processor()}, {usable_cores()} of {os.cpu_count()} cores usable")
    yield _memory()
    yield _disk(base)
    yield _isolation()


def _processor() -> str:
    if _CPU_INFO.is_file():
        lines = _CPU_INFO.read_text(errors="replace").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> Finding:
    import psutil

    state, limit = psutil.virtual_memory(), runtime.container_memory_bytes()
    text = f"{show_bytes(state.total)}, {show_bytes(state.available)} available"
    text += f", this container may use {show_bytes(limit)}" if limit is not None and limit < state.total else ""
    if min(state.available, limit or state.available) < _LOW_MEMORY_BYTES:
        remedy = (
            "close other programs, or set `run.limits.memory`: `nanochat-run plan RECIPE` shows what a recipe needs"
        )
        return Finding("memory", text, "warning", remedy)
    return Finding("memory", text)


def _disk(base: Path) -> Finding:
    free = shutil.disk_usage(existing_folder(base)).free
    text = f"{show_bytes(free)} free for {base}"
    if free < _LOW_DISK_BYTES:
        return Finding("disk", text, "warning", REMOVE_RUNS)
    return Finding("disk", text)


def existing_folder(path: Path) -> Path:
    """Return the nearest folder above a path that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _isolation() -> Finding:
    try:
        return Finding("sandbox", f"programs that a model writes are isolated by {find_isolation()}")
    except PreflightError as error:
        remedy = (
            "recipes with HumanEval are refused; leave it out, or accept the risk with `run.accept_unisolated_programs`"
        )
        return Finding("sandbox", str(error), "warning", remedy)


def examine_network() -> Iterator[Finding]:
    """Yield whether the hub can be reached, unless the user has forbidden connections."""
    address = endpoint()
    if is_offline():
        yield Finding("hub", "not asked: HF_HUB_OFFLINE is set, so only downloaded data are used")
        return
    began = time.perf_counter()
    try:
        with open_place(Place(address, None), method="HEAD", leaves=False):
            pass
    except StatusError as error:
        yield Finding("hub", f"{address} answers with status {error.status}", "warning", _UNREACHABLE)
        return
    except (TemporaryError, PreflightError) as error:
        yield Finding("hub", f"{address} cannot be reached: {error}", "warning", _UNREACHABLE)
        return
    milliseconds = 1000 * (time.perf_counter() - began)
    try:
        login = "logged in" if read_token() else "not logged in, which only private and gated data sets need"
    except PreflightError as error:
        yield Finding("hub", f"{address} answers", "warning", str(error))
        return
    yield Finding("hub", f"{address} answers in {milliseconds:.0f} ms; {login}")
