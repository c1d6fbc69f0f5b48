"""Whether a tortured run ended exactly as an undisturbed one: outputs, metrics, results, and what MLflow shows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlflow import MlflowClient
from process import STAGES, Bench

from nanochat.storage.files import sha256_of_file
from nanochat.tracking.link import read_link
from nanochat.tracking.mlflow_store import open_store
from nanochat.tracking.points import Point, read_points


def differences(smooth: Bench, rough: Bench, stages: Sequence[str] = STAGES) -> list[str]:
    """Return everything about some stages that is not as it should be, a line each."""
    found = compare_folders(smooth, rough, stages)
    return found + [f"MLflow: {line}" for line in _compare_tracking(rough, stages)]


def compare_folders(smooth: Bench, rough: Bench, stages: Sequence[str] = STAGES) -> list[str]:
    """Return everything in the folders of some stages that is not as it should be, a line each."""
    found = []
    for stage in stages:
        one, other = smooth.stage(stage), rough.stage(stage)
        if one.name != other.name:
            found.append(f"{stage}: fingerprint {other.name}, not {one.name}")
        found += [f"{stage}: {line}" for line in _compare_stage(one, other)]
    return found


def count_points(bench: Bench) -> int:
    """Return how many points of metrics MLflow must show for a run."""
    files = [bench.stage(stage) / name for stage in STAGES for name in ("metrics.jsonl", "timings.jsonl")]
    return sum(len(read_points(path)) for path in files)


def _compare_stage(one: Path, other: Path) -> Iterator[str]:
    if _bytes(one / "metrics.jsonl") != _bytes(other / "metrics.jsonl"):
        yield "metrics.jsonl differs"
    if one.parent.name in ("pretrain", "sft") and not _bytes(one / "metrics.jsonl"):
        yield "metrics.jsonl is empty"
    mine, theirs = _outputs(one), _outputs(other)
    yield from (
        f"out/{name} differs" for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)
    )
    recorded = [json.loads((folder / "record.json").read_text()) for folder in (one, other)]
    for key in ("output_digest", "metrics"):
        if recorded[0][key] != recorded[1][key]:
            yield f"record.json: {key} differs"
    for leftover in [*other.rglob(".writing-*"), *other.rglob(".deleting-*"), *other.glob("checkpoints")]:
        yield f"left behind: {leftover.relative_to(other)}"


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _outputs(folder: Path) -> dict[str, str]:
    """Return the digests of the files of `out/` as they lie there now, without those of wall-clock values."""
    out = folder / "out"
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "timings.json"]
    return {path.relative_to(out).as_posix(): sha256_of_file(path) for path in files}


def _compare_tracking(bench: Bench, stages: Sequence[str]) -> Iterator[str]:
    store = open_store(f"sqlite:///{bench.folder.resolve() / 'mlflow.db'}", "nanochat")
    runs = {run.info.run_id: run for run in store.client.search_runs([store.experiment_id], max_results=1000)}
    shown = set()
    (run_folder,) = (bench.base / "runs" / "toy").glob("[!.]*")
    for title, folder in {"run": run_folder, **{name: bench.stage(name) for name in stages}}.items():
        link = read_link(folder / "tracking.json")
        if link is None or link.run_id not in runs:
            yield f"{title}: no MLflow run"
            continue
        shown.add(link.run_id)
        status = runs[link.run_id].info.status
        if status != "FINISHED":
            yield f"{title}: status {status}"
        for name in ("metrics.jsonl", "timings.jsonl"):
            yield from (f"{title}: {line}" for line in _compare_history(store.client, link.run_id, folder / name))
        for name in runs[link.run_id].data.metrics:
            steps = [metric.step for metric in store.client.get_metric_history(link.run_id, name)]
            if len(steps) != len(set(steps)):
                yield f"{title}: {name} has a step twice"
    strays = [runs[run_id].info.run_name for run_id in runs.keys() - shown]
    if strays:
        yield f"{len(strays)} runs that nothing refers to: {', '.join(strays)}"


def _compare_history(client: MlflowClient, run_id: str, path: Path) -> Iterator[str]:
    """Every point of the local file is there once; the values of timings may be those of an earlier attempt."""
    expected: dict[str, list[Point]] = {}
    for point in read_points(path):
        expected.setdefault(point.name, []).append(point)
    for name, points in expected.items():
        history = sorted(client.get_metric_history(run_id, name), key=lambda metric: metric.step)
        steps = [metric.step for metric in history]
        if steps != sorted(point.step for point in points):
            yield f"{name}: {len(steps)} points, {len(set(steps))} steps; {len(points)} expected"
        elif path.name == "metrics.jsonl" and [m.value for m in history] != [p.value for p in points]:
            yield f"{name}: values differ"
