"""The data sets of a run and its most important results, which MLflow's table of runs shows."""

from __future__ import annotations

from collections.abc import Mapping

from nanochat.plan.stages import STAGES
from nanochat.runner.report.scores import list_scores
from nanochat.runner.store.record import StageRecord
from nanochat.runner.store.run_state import RunState, StageEntry
from nanochat.tracking.points import Point
from nanochat.tracking.run_view import HEADLINE_METRICS, Dataset

_BPB, _CORE, _CHAT, _TOKENS, _MINUTES = HEADLINE_METRICS
_SECONDS_PER_MINUTE = 60


def headline_points(state: RunState, records: Mapping[str, StageRecord]) -> tuple[Point, ...]:
    """Return the most important results of a run that has ended, as far as it has them.

    The step is the number of its finished stages, since a run that is continued later adds to its tokens and time.
    """
    if state.status == "running" or not records:
        return ()
    scores = {suite.task: suite.score.value for suite in reversed(list_scores(records))}
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
