"""The tags of runs, sweeps and stages in MLflow: code, user, process, settings, and the cached stages of a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

from nanochat.runner.report.results import time_remark
from nanochat.runner.store.provenance import ProcessId
from nanochat.runner.store.record import StageRecord
from nanochat.runner.store.run_state import RunState, StageEntry
from nanochat.storage.layout import StageFolder
from nanochat.tracking.link import read_link
from nanochat.tracking.run_view import CACHED_TAG_PREFIX, HOST_TAG, MACHINE_TAG, PID_TAG, STARTED_TAG

NOT_REPRODUCIBLE_TAG = "not_reproducible"


def common_tags(state: RunState) -> dict[str, str]:
    """Return the tags of every MLflow run that a process writes: the code, the user and the process."""
    commit = state.provenance.git_commit or "unknown"
    return {
        "git_commit": commit + (" (modified)" if state.provenance.git_dirty else ""),
        **process_tags(state.recipe, ProcessId(state.host, state.machine, state.pid, state.process_started)),
    }


def process_tags(recipe: str, process: ProcessId) -> dict[str, str]:
    """Return the tags that name the recipe of a run or sweep, its user, and the process that works on it."""
    return {
        "mlflow.source.name": recipe,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": psutil.Process().username(),
        HOST_TAG: process.host,
        MACHINE_TAG: process.machine,
        PID_TAG: str(process.pid),
        STARTED_TAG: str(process.started),
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
