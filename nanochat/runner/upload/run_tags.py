"""The tags of runs and stages in MLflow, and what its table shows of a run: data sets and its main results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from nanochat.plan.stages import STAGES
from nanochat.runner.report.results import time_remark
from nanochat.runner.report.scores import list_suites
from nanochat.runner.store.record import StageRecord
from nanochat.runner.store.run_state import RunState, StageEntry
from nanochat.storage.layout import StageFolder
from nanochat.tracking.link import read_link
from nanochat.tracking.points import Point
from nanochat.tracking.run_view import (
    CACHED_TAG_PREFIX,
    HEADLINE_METRICS,
    HOST_TAG,
    MACHINE_TAG,
    PID_TAG,
    STARTED_TAG,
    Dataset,
)

NOT_REPRODUCIBLE_TAG = "not_reproducible"
_BPB, _CORE, _CHAT, _TOKENS, _MINUTES = HEADLINE_METRICS
_SECONDS_PER_MINUTE = 60


def common_tags(state: RunState) -> dict[str, str]:
    """Return the tags of every MLflow run that a process writes: the code, the user and the process."""
    commit = state.provenance.git_commit or "unknown"
    return {
        "git_commit": commit + (" (modified)" if state.provenance.git_dirty else ""),
        **process_tags(
            state.recipe, host=state.host, machine=state.machine, pid=state.pid, started=state.process_started
        ),
    }


def process_tags(recipe: str, *, host: str, machine: str, pid: int, started: float) -> dict[str, str]:
    """Return the tags that name the recipe of a run or sweep, its user, and the process that works on it."""
    return {
        "mlflow.source.name": recipe,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": psutil.Process().username(),
        HOST_TAG: host,
        MACHINE_TAG: machine,
        PID_TAG: str(pid),
        STARTED_TAG: str(started),
    }


def stage_tags(entry: StageEntry, folder: StageFolder, record: StageRecord | None) -> dict[str, str]:
    """Return the settings with which a stage was computed, and the places of its results."""
    tags = {"stage": entry.stage, "fingerprint": folder.path.name, "folder": str(folder.path)}
    if record is None:
        return tags
    return tags | {"device": record.device, "output_digest": record.output_digest} | time_tags([record])


def time_tags(records: Iterable[StageRecord]) -> dict[str, str]:
    """Return a tag that names the stages with a horizon in wall time, if there are any."""
    marked = [f"{record.stage} {remark}" for record in records if (remark := time_remark(record)) is not None]
    return {NOT_REPRODUCIBLE_TAG: "; ".join(marked)} if marked else {}


def cached_tags(state: RunState, base: Path) -> dict[str, str]:
    """Return a tag for each stage taken from the cache: the MLflow run that computed it, else its fingerprint."""
    tags = {}
    for stage, folder in state.folders(base).items():
        if (entry := state.entry(stage)).status == "cached":
            link = read_link(folder.link)
            tags[f"{CACHED_TAG_PREFIX}{entry.title}"] = link.run_id if link else folder.path.name
    return tags


def headline_points(state: RunState, records: Mapping[str, StageRecord]) -> tuple[Point, ...]:
    """Return the most important results of a run that has ended, as far as it has them.

    The step is the number of its finished stages, since a run that is continued later adds to its tokens and time.
    """
    if state.status == "running" or not records:
        return ()
    scores = {suite.task: suite.value for suite in reversed(list_suites(records))}
    trained = [record for stage, record in records.items() if STAGES[stage].trains]
    validated = [record.metrics["bpb"] for record in trained if "bpb" in record.metrics]
    values = {
        _BPB: scores.get("bpb", validated[-1] if validated else None),
        _CORE: scores.get("core"),
        _CHAT: records["chat_eval"].metrics.get("chat_core") if "chat_eval" in records else None,
        _TOKENS: sum(record.metrics.get("tokens", 0) for record in trained) or None,
        _MINUTES: sum(record.measured.seconds or 0 for record in records.values()) / _SECONDS_PER_MINUTE,
    }
    return tuple(Point(len(records), name, value) for name, value in values.items() if value is not None)


def datasets_of_stage(entry: StageEntry, record: StageRecord | None) -> tuple[Dataset, ...]:
    """Return the data sets that a finished stage read."""
    digests = record.source_digests.items() if record else ()
    context = "evaluation" if STAGES[entry.stage].evaluates else "training"
    return tuple(Dataset(name=n, digest=d, source=entry.sources.get(n, n), context=context) for n, d in digests)


def datasets_of_run(state: RunState, records: Mapping[str, StageRecord]) -> tuple[Dataset, ...]:
    """Return the data sets that the finished stages of a run read, each once. Data that were trained on say so."""
    datasets: dict[tuple[str, str], Dataset] = {}
    for stage, record in records.items():
        for dataset in datasets_of_stage(state.entry(stage), record):
            datasets.setdefault((dataset.name, dataset.digest), dataset)
    return tuple(datasets.values())
