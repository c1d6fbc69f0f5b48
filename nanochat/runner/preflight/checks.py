"""What must hold before stage one: sources, disk, memory, time and the tracking store; all findings at once."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from nanochat.data.sources import SourceSpec, check_source
from nanochat.errors import PreflightError
from nanochat.model.config import GPTConfig
from nanochat.plan.compile import device_class_of
from nanochat.plan.estimate.estimate import total
from nanochat.plan.estimate.fitting import model_of, peak_bytes, rows_that_fit
from nanochat.plan.plan import StagePlan
from nanochat.plan.quantities import show_bytes, show_duration
from nanochat.plan.sharing import is_shared, uneven_shares
from nanochat.plan.specs import PretrainSpec, SftSpec, TokenizerSpec
from nanochat.runner.preflight.data_checks import check_inputs
from nanochat.runner.preflight.memory_limit import gpu_count, memory_limit
from nanochat.runner.preflight.prepare import Prepared
from nanochat.runner.process.hosts import find_obstacles
from nanochat.runner.store.cache import Judgement
from nanochat.tracking.store import database_path, show_uri

_DISK_MARGIN = 1.1


def check_all(prepared: Prepared, to_run: Sequence[Judgement], *, tracking_uri: str | None) -> None:
    """Check everything that the stages to run need.

    Raises:
        PreflightError: the message holds every finding.
    """
    stages = [judgement.stage for judgement in to_run]
    findings = [
        *prepared.problems,
        *_check_sources(prepared, stages),
        *_check_disk(prepared, stages),
        *_check_distributed(prepared, stages),
        *_check_memory(prepared, stages),
        *_check_time(prepared, stages),
        *(_check_tracking(tracking_uri) if tracking_uri is not None else ()),
    ]
    findings = list(dict.fromkeys(findings))  # a source that is not there is found twice
    if findings:
        heading = f"{len(findings)} thing{'s' if len(findings) > 1 else ''} to settle before the run can start"
        raise PreflightError("\n".join([f"{heading}:", *(f"  - {finding}" for finding in findings)]))


def _check_sources(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    sources: dict[str, SourceSpec] = {source.name: source for stage in stages for source in stage.sources}
    broken: set[str] = set()
    for source in sources.values():
        try:
            check_source(source, prepared.base, prepared.loaded.recipe.run.offline)
        except PreflightError as error:
            broken.add(source.name)
            yield str(error)
    yield from check_inputs(stages, prepared.base, without=broken)


def _check_disk(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    needed = (total([stage.estimate for stage in stages]).disk_bytes or 0) * _DISK_MARGIN
    folder = prepared.base
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        yield (
            f"disk: the plan needs {show_bytes(needed)} under {folder}, and {show_bytes(free)} are free; "
            f"`nanochat-run gc` drops what no run refers to, or set NANOCHAT_BASE_DIR to another disk"
        )


def _check_memory(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    run = prepared.loaded.recipe.run
    device = device_class_of(run.device, prepared.device_class)
    limit = memory_limit(run.limits.memory, device)
    for stage in stages:
        given = prepared.init_models.get(stage.name)
        config = model_of(stage, prepared.plan) or (_config_in(given) if given is not None else None)
        planned = peak_bytes(stage, config, device)
        # GPUs have memory of their own, processes on one CPU or Mac share the machine's; a given limit is each one's.
        is_own = device == "cuda" or run.limits.memory is not None or not is_shared(stage)
        share = limit if limit is None or is_own else limit // stage.execution.processes_here
        if share is None or planned is None or planned <= share:
            continue
        fits = rows_that_fit(stage, config, share, device)
        if stage.execution.micro_batch_size is None and fits:
            continue  # `auto` takes fewer rows than the plan shows
        advice = f"set `run.micro_batch_size: {fits}`" if fits else _advice_without_rows(stage)
        yield f"memory: {stage.name} needs about {show_bytes(planned)}, the limit is {show_bytes(share)}; {advice}"


def _check_distributed(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    """Yield what keeps several processes from starting, and from sharing a step of a model that `init_from` names."""
    shared = [stage for stage in stages if is_shared(stage)]
    if not shared:
        return
    yield from find_obstacles(shared[0].execution, gpu_count())
    for stage in shared:
        given = prepared.init_models.get(stage.name)
        problem = uneven_shares(stage.spec, _config_in(given), stage.execution.processes) if given else None
        if problem is not None:
            yield f"`run.distributed.processes`: {problem[0]}; {problem[1]}"


def _advice_without_rows(stage: StagePlan) -> str:
    match stage.spec:
        case TokenizerSpec():
            return "set `tokenizer.max_chars` lower"
        case PretrainSpec() | SftSpec() if not stage.execution.activation_checkpointing:
            return "set `run.activation_checkpointing: true`, or use a smaller model or a shorter sequence_len"
        case _:
            return "use a smaller model or a shorter sequence_len"


def _config_in(folder: Path) -> GPTConfig | None:
    """Return the model of a model folder; None where its config cannot be read, which the stage itself will explain."""
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return GPTConfig.from_dict(described["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_time(prepared: Prepared, stages: Sequence[StagePlan]) -> Iterator[str]:
    minutes = prepared.loaded.recipe.run.limits.minutes
    seconds = total([stage.estimate for stage in stages]).seconds
    if minutes is not None and seconds is not None and seconds > 60 * minutes:
        yield (
            f"time: the plan is estimated at {show_duration(seconds)}, `run.limits.minutes` allows "
            f"{show_duration(60 * minutes)}; shorten the horizon or raise the limit"
        )


def _check_tracking(uri: str) -> Iterator[str]:
    path = database_path(uri)
    if path is None:
        return  # a server that is down costs nothing: what it misses is sent later
    # SQLite writes a journal beside the file, so the folder counts too.
    targets = [path, path.parent] if path.exists() else [_existing_parent(path)]
    target = next((one for one in targets if not os.access(one, os.W_OK)), None)
    if target is not None:
        yield (
            f"tracking: {show_uri(uri)} cannot be written ({target}); "
            f"set `tracking.uri`, or `tracking.kind: none` to do without"
        )


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.exists())
