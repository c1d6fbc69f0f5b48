"""Checks sources, disk, memory, time and the tracking store before the first stage; reports all problems at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from nanochat import runtime
from nanochat.data.ingest.pending import plan_conversions
from nanochat.data.sources.source_contents import check_source
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError
from nanochat.export.trial import missing_packages
from nanochat.plan.compile import device_class_of
from nanochat.plan.estimate.device_classes import DeviceClass, mac_gpu_bytes
from nanochat.plan.estimate.estimate import total
from nanochat.plan.fitting import is_shared, rows_that_fit, uneven_shares
from nanochat.plan.plan import StagePlan
from nanochat.plan.quantities import show_bytes, show_duration
from nanochat.plan.specs.evaluation import ExportSpec
from nanochat.plan.text.estimate_notes import need_less
from nanochat.runner.preflight.data_checks import check_inputs
from nanochat.runner.preflight.prepare import Prepared
from nanochat.runner.preflight.suite_checks import find_suite_problems
from nanochat.runner.preflight.tracking_checks import find_tracking_problems
from nanochat.runner.process.hosts import find_launch_problems
from nanochat.runner.store.run_state import RunTracking
from nanochat.storage.file_errors import REMOVE_RUNS

_DISK_MARGIN = 1.1
_QUERY = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")
_QUERY_SECONDS = 10.0


def check_all(prepared: Prepared, stages: Sequence[StagePlan], *, tracking: RunTracking) -> None:
    """Check everything that the given stages need to run. The message of the PreflightError lists every problem."""
    refuse(find_problems(prepared, stages, tracking=tracking))


def refuse(problems: Iterable[str]) -> None:
    """Raise a PreflightError that lists the problems, each once, if there are any."""
    if listed := list(dict.fromkeys(problems)):
        heading = f"{len(listed)} problem{'s' if len(listed) > 1 else ''} to fix before the run can start"
        raise PreflightError("\n".join([f"{heading}:", *(f"  - {problem}" for problem in listed)]))


def find_problems(prepared: Prepared, stages: Sequence[StagePlan], *, tracking: RunTracking) -> list[str]:
    """Return everything that the given stages need to run and that is missing. A problem may be listed twice."""
    return [
        *prepared.problems,
        *_check_base(prepared.base),
        *_check_sources(prepared, stages),
        *_check_models(prepared, stages),
        *_check_disk(prepared, stages),
        *_check_distributed(prepared, stages),
        *_check_memory(prepared, stages),
        *_check_time(prepared, stages),
        *find_suite_problems(prepared, stages),
        *_check_packages(stages),
        *find_tracking_problems(prepared.loaded.recipe.tracking, tracking),
    ]


def _check_base(base: Path) -> Iterator[str]:
    try:
        runtime.check_base_dir(base)
    except PreflightError as error:
        yield str(error)


def _check_sources(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    sources: dict[str, SourceSpec] = {source.name: source for stage in stages for source in stage.read_sources}
    broken: set[str] = set()
    for source in sources.values():
        try:
            check_source(source, prepared.base, prepared.loaded.recipe.run.offline)
        except PreflightError as error:
            broken.add(source.name)
            yield str(error)
    yield from check_inputs(stages, prepared.base, without=broken)


def _check_models(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    """Yield which file of a model to start from is damaged, after comparing the content of all."""
    for stage in stages:
        try:
            if (model := prepared.init_models.get(stage.name)) is not None:
                model.check()
        except PreflightError as error:
            yield f"{stage.name}.init_from: {error}"
    if any(stage.name == "pretrain" for stage in stages):
        yield from prepared.find_other_tokenizer()


def _check_disk(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    sources = (source for stage in stages for source in stage.read_sources)
    copies = sum(conversion.disk_bytes for conversion in plan_conversions(sources, base=prepared.base))
    needed = (total([stage.estimate for stage in stages]).disk_bytes or 0) + copies
    yield from find_lack_of_disk(needed, prepared.base, whose="plan")


def find_lack_of_disk(needed_bytes: int, base: Path, *, whose: str) -> Iterator[str]:
    """Yield that a plan or a sweep needs more space under the base folder than its disk has."""
    needed = needed_bytes * _DISK_MARGIN
    free = shutil.disk_usage(base).free if base.is_dir() else None
    if free is not None and needed > free:
        yield (
            f"disk: the {whose} needs {show_bytes(needed)} under {base}, but only {show_bytes(free)} are free; "
            f"{REMOVE_RUNS}; or set NANOCHAT_BASE_DIR to a folder on another disk"
        )


def _check_memory(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    run = prepared.loaded.recipe.run
    device = device_class_of(run.device, prepared.device_class)
    limit = memory_limit(run.limits.memory, device)
    for stage in stages:
        planned = stage.estimate.peak_memory_bytes
        # Each process has a GPU of its own, but processes on one CPU or Mac share its memory. A limit from the recipe
        # is for each process.
        has_own_memory = device == "cuda" or run.limits.memory is not None or not is_shared(stage)
        share = limit if limit is None or has_own_memory else limit // stage.execution.processes_here
        if share is None or planned is None or planned <= share:
            continue
        fits = rows_that_fit(stage, share, device)
        if stage.execution.micro_batch_size is None and fits:
            continue  # `auto` will choose fewer rows than the plan shows
        advice = f"set `run.micro_batch_size: {fits}`" if fits else need_less(stage, share)
        yield f"memory: {stage.name} needs about {show_bytes(planned)}, but the limit is {show_bytes(share)}; {advice}"


def _check_distributed(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    """Yield why processes that train together cannot start, or cannot divide a step of the model in `init_from`."""
    shared = [stage for stage in stages if is_shared(stage)]
    if not shared:
        return
    yield from find_launch_problems(shared[0].execution, len(gpu_memories()) or None)
    for stage in shared:
        if (problem := uneven_shares(stage.spec, stage.model, stage.execution.processes)) is not None:
            yield f"`run.distributed.processes`: {problem[0]}; {problem[1]}"


def _check_time(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    minutes = prepared.loaded.recipe.run.limits.minutes
    seconds = total([stage.estimate for stage in stages]).seconds
    if minutes is not None and seconds is not None and seconds > 60 * minutes:
        yield (
            f"time: the plan needs about {show_duration(seconds)}, but `run.limits.minutes` allows only "
            f"{show_duration(60 * minutes)}; shorten the horizon or raise the limit"
        )


def _check_packages(stages: Sequence[StagePlan]) -> Iterator[str]:
    """Yield the packages that are missing to run exported models."""
    specs = [stage.spec for stage in stages if isinstance(stage.spec, ExportSpec) and stage.spec.is_checked]
    if missing := [name for spec in specs for form in spec.formats for name in missing_packages(form)]:
        yield (
            f"export.check: to run the exported models, {' and '.join(missing)} must be installed: "
            "`pip install 'nanochat-run[export]'`, or leave `export.check` out"
        )


def memory_limit(given: int | None, device: DeviceClass) -> int | None:
    """Return how many bytes a stage may use: `given`, else what the device has, or None if that is not known."""
    if given is not None:
        return given
    if device == "cuda":
        return next(iter(gpu_memories()), None)
    whole = min(int(psutil.virtual_memory().total), runtime.container_memory_bytes() or sys.maxsize)
    return mac_gpu_bytes(whole) if device == "metal" else whole


def gpu_memories() -> list[int]:
    """Return the memory of each NVIDIA GPU in bytes as its driver reports it, empty if no driver answers."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        query = subprocess.run([program, *_QUERY], capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
        return [int(line) * 2**20 for line in query.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
