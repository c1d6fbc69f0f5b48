"""Decides how many cells run at a time, and where: on this machine, spread over its GPUs, or on other hosts."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from nanochat import runtime
from nanochat.errors import PreflightError
from nanochat.plan.compile import device_class_of
from nanochat.plan.estimate.device_classes import usable_bytes
from nanochat.plan.quantities import show_bytes
from nanochat.plan.sweeps import total_cost
from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.sweeps.combinations import list_seeds
from nanochat.runner.preflight.run_checks import gpu_memories, memory_limit
from nanochat.runner.process.hosts import LOOPBACK, read_hosts
from nanochat.runner.sweeps.preparing.prepare_sweep import PreparedSweep

_VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place where one cell can run at a time."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for the stages, such as the GPU to use."""
    memory_bytes: int | None = None
    """The share of a cell of the memory that several cells use; None if it may use all."""
    host: str = ""
    """Another machine to run on; empty for this one."""


def choose_slots(sweep: PreparedSweep) -> list[Slot]:
    """Return the places where cells run.

    A PreflightError says that the hostfile cannot be read, or that the cells do not fit on this machine together.
    """
    section = sweep.section
    if section.hostfile is not None:
        hosts, _ = read_hosts(Path(section.hostfile), field="sweep.hostfile")
        return [Slot(host="" if host in (LOOPBACK, "localhost") else host) for host in hosts]
    if section.parallel in (None, 1):
        return [Slot()]
    gpus = _gpus(sweep)
    most = len(gpus) if gpus else _most_on_cpu(sweep)
    wanted = most if section.parallel == "auto" else int(section.parallel)
    count = max(1, min(wanted, cell_count(sweep)))
    together = math.ceil(count / max(1, len(gpus)))
    if problem := _problem(sweep, together, gpus):
        origin = sweep.loaded.locate(FieldProblem(("sweep", "parallel"), "parallel", problem)).origin
        raise PreflightError(f"{origin}: {problem}")
    share = _share(sweep, together, gpus)
    if not gpus:
        return [Slot(memory_bytes=share)] * count
    spread = itertools.islice(itertools.cycle(gpus), count)
    return [Slot(environment={_VISIBLE_GPUS: gpu}, memory_bytes=share) for gpu in spread]


def cell_count(sweep: PreparedSweep) -> int:
    """Return how many cells the sweep will have."""
    search = sweep.section.search
    return len(sweep.cells) if search is None else search.trials * len(list_seeds(sweep.loaded))


def _problem(sweep: PreparedSweep, together: int, gpus: list[str]) -> str:
    """Return why cells that run `together` do not fit into the memory, that of a GPU if there are any, or nothing."""
    peak, limit = _peak_bytes(sweep), _memory(sweep)
    if peak is None or limit is None or together == 1 or together * peak <= limit:
        return ""
    needed = f"{together} cells at a time{' on a GPU' if gpus else ''} need about {show_bytes(together * peak)}"
    places = max(1, len(gpus))
    return f"{needed}, but the limit is {show_bytes(limit)}; set `sweep.parallel: {places * max(1, limit // peak)}`"


def _share(sweep: PreparedSweep, together: int, gpus: list[str]) -> int | None:
    """Return how much memory each of the cells may use that run `together`; None for as much as it would alone.

    Otherwise `micro_batch_size: auto` of each would fill a whole GPU. On a CPU it stays small by itself.
    """
    given, memory = sweep.loaded.recipe.run.limits.memory, _memory(sweep)
    if together == 1 or memory is None or (given is None and not gpus):
        return None
    return (usable_bytes("cuda", memory) if given is None else memory) // together


def _most_on_cpu(sweep: PreparedSweep) -> int:
    """Return how many cells the cores and the free memory of this machine allow."""
    threads = sweep.loaded.recipe.run.threads
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    most = max(1, cores // threads)
    peak, limit = _peak_bytes(sweep), _memory(sweep)
    if peak is None or limit is None:
        return most
    free = min(limit, int(psutil.virtual_memory().available))
    return max(1, min(most, free // peak))


def _gpus(sweep: PreparedSweep) -> list[str]:
    """Return the NVIDIA GPUs that cells can use, as CUDA names them. Empty if the sweep does not run on any."""
    first = sweep.cells[0].prepared
    if device_class_of(sweep.loaded.recipe.run.device, first.device_class) != "cuda":
        return []
    visible = runtime.environment(_VISIBLE_GPUS)
    if visible:
        return [name.strip() for name in visible.split(",")]
    return [str(number) for number in range(len(gpu_memories()))]


def _peak_bytes(sweep: PreparedSweep) -> int | None:
    return total_cost(sweep.stages_to_run()).peak_memory_bytes


def _memory(sweep: PreparedSweep) -> int | None:
    run = sweep.loaded.recipe.run
    return memory_limit(run.limits.memory, device_class_of(run.device, sweep.cells[0].prepared.device_class))
