"""The report of a run: what was run, what came out, what the model says, and what it cost against the plan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nanochat.plan.quantities import show_bytes, show_duration, show_score, show_value
from nanochat.plan.stages import evaluation_stages
from nanochat.runner.report.expectations import check_expectations
from nanochat.runner.report.html import render_html
from nanochat.runner.report.plots import SCORES_PICTURE, draw_plots, draw_scores
from nanochat.runner.report.scores import chance_level, describe_stages, list_suites
from nanochat.runner.store.record import StageRecord
from nanochat.runner.store.runs import Run
from nanochat.storage.files import write_text
from nanochat.storage.layout import StageFolder

_LEGEND = """\
A score is the share of problems solved, 1 being all, unless its line says otherwise. ± is one standard error: a repeat
on other problems would most often land within two of it. Chance is what guessing scores."""
_SAMPLE_CHARS = 12_000
_LINE_METRICS = 6
_COMPANION = re.compile(r"^(?P<metric>.+)\.(?P<kind>stderr|n|centred)$")
_QUALITY = re.compile(r"loss|bpb|bytes_per_token")
"""Metrics of the other stages that say how good something is rather than how much was done: shown first."""
_LOSSES = ("skipped_steps", "refused_conversations", "dropped_conversations", "cut_conversations")
"""Metrics that are shown wherever they are not 0."""


def write_report(run: Run, base: Path, *, with_plots: bool = True) -> Path:
    """Write `report.md`, `report.html` and the pictures into the run's folder; return the first one's path."""
    records = run.records(base)
    pictures = _draw(run, records, base) if with_plots else []
    text = render_report(run, records, samples=_samples(run, base), pictures=[path.name for path in pictures])
    folder = run.folder
    page = render_html(text, folder.path, attached=(folder.recipe, folder.resolved, folder.plan_text))
    write_text(folder.report_page, page)
    write_text(folder.report, text)
    return folder.report


def _draw(run: Run, records: Mapping[str, StageRecord], base: Path) -> list[Path]:
    streams = {
        entry.stage: StageFolder(base / entry.folder).metrics for entry in run.state.stages if entry.folder is not None
    }
    written = {stage: path for stage, path in streams.items() if path.is_file()}
    return [*draw_scores(list_suites(records), run.folder.plots), *draw_plots(written, run.folder.plots)]


def render_report(
    run: Run, records: Mapping[str, StageRecord], *, samples: Mapping[str, str], pictures: list[str]
) -> str:
    """Return the report as markdown. `samples` by stage; `pictures` are names in the folder `plots/`."""
    curves = [_picture(name) for name in pictures if name != SCORES_PICTURE]
    parts = [
        f"# {run.state.name}",
        run.state.description,
        _outcome(run),
        "## What happened",
        "\n".join(f"- {sentence}" for sentence in describe_stages(records)) or "No stage is done yet.",
        _scores(records),
        _picture(SCORES_PICTURE) if SCORES_PICTURE in pictures else "",
        _expectations(run, records),
        "\n\n".join(["## Learning curves", *curves]) if curves else "",
        "\n\n".join(["## Samples", *map(_lowered, samples.values())]) if samples else "",
        "## Time and memory",
        _cost_table(run, records),
        "## What was run",
        _facts(run),
        _digests(records),
        f"## All results\n\n{_results_table(records)}" if records else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _picture(name: str) -> str:
    return f"![{name.removesuffix('.png').replace('_', ' ')}](plots/{name})"


def _lowered(samples: str) -> str:
    """Return samples with their headings two levels lower; what a model wrote is indented, so no heading."""
    return re.sub(r"^#", "###", samples, flags=re.MULTILINE)


def _scores(records: Mapping[str, StageRecord]) -> str:
    suites = list_suites(records)
    if not suites:
        return ""
    lines = [
        "| evaluation | score | ± | problems | chance | reading | what it asks |",
        "|---|---:|---:|---:|---:|---|---|",
    ]
    for one in suites:
        count = "" if one.count is None else f"{one.count:,}"
        cells = (f"{one.stage} {one.name}", show_value(one.value), _number(one.stderr), count, _number(one.chance))
        lines.append(f"| {' | '.join((*cells, one.verdict, one.meaning))} |")
    return "\n\n".join(["## Scores", "\n".join(lines), _LEGEND])


@dataclass(frozen=True)
class Result:
    """One result of a stage, with what its stage says of its certainty."""

    stage: str
    metric: str
    value: float
    stderr: float | None = None
    count: int | None = None
    chance: float | None = None


def list_results(records: Mapping[str, StageRecord]) -> list[Result]:
    """Return every result, each with its standard error, number of problems and chance level where there are such."""
    results = []
    for stage, record in records.items():
        for name in sorted(record.metrics, key=lambda metric: not _is_quality(stage, metric)):
            match = _COMPANION.match(name)
            if match is None or match["metric"] not in record.metrics:
                results.append(_result(stage, name, record.metrics))
    return results


def _is_quality(stage: str, metric: str) -> bool:
    return stage in evaluation_stages() or _QUALITY.search(metric) is not None


def _result(stage: str, name: str, metrics: Mapping[str, float]) -> Result:
    value, count, centred = metrics[name], metrics.get(f"{name}.n"), metrics.get(f"{name}.centred")
    chance = None if centred is None else chance_level(value, centred)
    return Result(stage, name, value, metrics.get(f"{name}.stderr"), None if count is None else int(count), chance)


def result_line(record: StageRecord) -> str:
    """Return a stage's results (an evaluation's scores, the first of others) and losses for a line, after a colon."""
    results = list_results({record.stage: record})
    first = [result for result in results if result.metric not in _LOSSES]
    if record.stage in evaluation_stages():  # every score, not how much text it was taken on
        first = [one for one in first if not one.metric.endswith((".bytes", ".tokens"))]
    else:
        first = first[:_LINE_METRICS]
    lost = [result for result in results if result.metric in _LOSSES and result.value > 0]
    shown = [_in_words(result) for result in (*first, *lost)]
    return f": {', '.join(shown)}" if shown else ""


def _in_words(result: Result) -> str:
    return f"{result.metric} {show_score(result.value, result.stderr, result.count)}"


def _outcome(run: Run) -> str:
    state = run.state
    message = f": {state.message}" if state.message else ""
    return f"**{state.status}**{message}"


def _results_table(records: Mapping[str, StageRecord]) -> str:
    lines = ["| stage | metric | value | ± stderr | n | chance |", "|---|---|---:|---:|---:|---:|"]
    for one in list_results(records):
        cells = (_number(one.stderr), "" if one.count is None else f"{one.count:,}", _number(one.chance))
        lines.append(f"| {one.stage} | {one.metric} | {show_value(one.value)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _expectations(run: Run, records: Mapping[str, StageRecord]) -> str:
    results = named_results(records)
    verdicts = check_expectations(run.state.expectations, results)
    return "\n".join(["Expected:", "", *(f"- {verdict}" for verdict in verdicts)]) if verdicts else ""


def named_results(records: Mapping[str, StageRecord]) -> dict[str, float]:
    """Return every result by `stage.metric`, the way `expect` names them."""
    return {f"{stage}.{name}": value for stage, record in records.items() for name, value in record.metrics.items()}


def _samples(run: Run, base: Path) -> dict[str, str]:
    found = {}
    for entry in run.state.stages:
        path = StageFolder(base / entry.folder).out / "samples.md" if entry.folder else None
        if path is not None and path.is_file():
            text = path.read_text(encoding="utf-8").strip()
            found[entry.stage] = text[:_SAMPLE_CHARS] + ("\n\n(shortened)" if len(text) > _SAMPLE_CHARS else "")
    return found


def _cost_table(run: Run, records: Mapping[str, StageRecord]) -> str:
    lines = [
        "| stage | status | time | planned | peak memory | planned | disk | device |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for entry in run.state.stages:
        record = records.get(entry.stage)
        planned = record.planned if record else entry.planned
        measured = record.measured if record else None
        cells = (
            entry.title,
            entry.status,
            show_duration(measured.seconds if measured else None),
            show_duration(planned.seconds),
            show_bytes(measured.peak_memory_bytes if measured else None),
            show_bytes(planned.peak_memory_bytes),
            show_bytes(measured.disk_bytes if measured else None),
            record.device if record else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _facts(run: Run) -> str:
    state, made = run.state, run.state.provenance
    started = datetime.fromtimestamp(state.created).strftime("%Y-%m-%d %H:%M:%S")
    packages = ", ".join(f"{name} {version}" for name, version in made.packages.items())
    return "\n".join(
        [
            f"- command: `{state.command}`",
            f"- recipe: `{state.recipe}` (kept as [recipe.yaml](recipe.yaml), resolved as [config.yaml](config.yaml))",
            f"- started: {started} on {made.host}, {made.platform}, Python {made.python}",
            f"- commit: {made.git_commit or 'unknown'}{' with local changes' if made.git_dirty else ''}",
            f"- packages: {packages}",
            f"- seed: {state.seed}",
        ]
    )


def _digests(records: Mapping[str, StageRecord]) -> str:
    lines = ["| stage | fingerprint | output | data |", "|---|---|---|---|"]
    for stage, record in records.items():
        sources = record.document.get("sources")
        data = sources.items() if isinstance(sources, dict) else ()
        shown = ", ".join(f"{name} {str(digest)[:12]}" for name, digest in data)
        lines.append(f"| {stage} | {record.fingerprint[:12]} | {record.output_digest[:12]} | {shown} |")
    return "\n".join(lines) if records else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
