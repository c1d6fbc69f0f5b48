"""Write the report of a run: what it did, its scores, curves and samples, what it cost, and how to repeat it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from nanochat.plan.quantities import show_bytes, show_duration, show_value
from nanochat.runner.report.expectations import check_expectations
from nanochat.runner.report.html import render_html
from nanochat.runner.report.markdown import markdown_table
from nanochat.runner.report.plots import SCORES_PLOT, draw_curves, draw_scores
from nanochat.runner.report.results import list_results, metrics_by_name
from nanochat.runner.report.scores import SCORE_LEGEND, describe_stages, list_suites
from nanochat.runner.store.record import StageRecord
from nanochat.runner.store.run_catalog import Run
from nanochat.stages.process.context import NOTE_PREFIX, indented
from nanochat.storage.files import write_text
from nanochat.storage.layout import StageFolder

_CURVES_INTRO = """\
The loss measures how badly the model predicts the next token: it is the negative logarithm of the probability that the
model gave to the right one, on average. Bits per byte (bpb) is the same measure per byte of text, so that models with
different tokenizers can be compared. Lower is better for both."""
_SAMPLES_INTRO = "Text that the models wrote. The prompts come from the recipe."
_COST_INTRO = "Planned values were estimated before the run. The time includes interrupted attempts."
_FINGERPRINT_INTRO = """\
A fingerprint is a hash of everything that decides a stage's result: its recipe fields, its data, the seed, its code
version, and the outputs of earlier stages. A later run with the same fingerprint reuses the result. The hashes here are
shortened."""
_SAMPLE_CHARS = 12_000
_MAX_NOTES = 30


def write_report(run: Run, base: Path, *, with_plots: bool = True) -> Path:
    """Write `report.md`, `report.html` and the plots into the run's folder, and return the path of `report.md`."""
    folder = run.folder
    text = report_text(run, base, plots=[path.name for path in _draw(run, base)] if with_plots else [])
    page = render_html(text, folder.path, attached=(folder.recipe, folder.resolved, folder.plan_text))
    write_text(folder.report_page, page)
    write_text(folder.report, text)
    return folder.report


def report_text(run: Run, base: Path, *, plots: Sequence[str]) -> str:
    """Return the report as markdown. `plots` names the images in `plots/`.

    Of stages whose results are not here, it says which they are and where they were searched.
    """
    state, records, lost = run.state, run.records(base), run.lost(base)
    folders = _readable_folders(run, base)
    outcome = f"**{state.status}**" + (f": {state.message}" if state.message else "")
    happened = "\n".join(f"- {sentence}" for sentence in describe_stages(records))
    sources, samples = _source_lines(folders), _samples(folders)
    curves = [_image(name) for name in plots if name != SCORES_PLOT]
    parts = [
        f"# {state.name}",
        state.description,
        outcome,
        *(["## Missing", run.describe_lost(base, lost)] if lost else ()),
        *(["## What happened", happened or "No stage is finished yet."] if happened or not lost else ()),
        *_note_section(_notes(folders)),
        *_scores(records, has_plot=SCORES_PLOT in plots),
        *_expectations(run, records),
        *(["## Data", indented("\n".join(sources))] if sources else ()),
        *(["## Learning curves", _CURVES_INTRO, *curves] if curves else ()),
        *(["## Samples", _SAMPLES_INTRO, *map(_lower_headings, samples.values())] if samples else ()),
        "## Time and memory",
        _COST_INTRO,
        _cost_table(run, records),
        "## What was run",
        _facts(run),
        *([_FINGERPRINT_INTRO, _fingerprint_table(records)] if records else ()),
        *(["## All results", _results_table(records)] if records else ()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _readable_folders(run: Run, base: Path) -> dict[str, StageFolder]:
    """Return the folders of the stages without those that hold no result of this run."""
    lost = run.lost(base)
    return {stage: folder for stage, folder in run.folders(base).items() if stage not in lost}


def _draw(run: Run, base: Path) -> list[Path]:
    folders = _readable_folders(run, base).items()
    existing = {stage: folder.metrics for stage, folder in folders if folder.metrics.is_file()}
    suites = list_suites(run.records(base))
    return [*draw_scores(suites, run.folder.plots), *draw_curves(existing, run.folder.plots)]


def _image(name: str) -> str:
    return f"![{name.removesuffix('.png').replace('_', ' ')}](plots/{name})"


def _lower_headings(samples: str) -> str:
    """Return samples with headings two levels lower. Text written by a model is indented, so it has no headings."""
    return re.sub(r"^#", "###", samples, flags=re.MULTILINE)


def _scores(records: Mapping[str, StageRecord], *, has_plot: bool) -> list[str]:
    suites = list_suites(records)
    if not suites:
        return []
    columns = ("evaluation", "score", "±", "problems", "guess", "reading", "what the task asks", "cut")
    rows = []
    for x in suites:
        numbers = (show_value(x.value), *_uncertainty(x.stderr, x.count, x.chance))
        rows.append((f"{x.stage} {x.name}", *numbers, x.reading, x.asks, x.cut))
    table = markdown_table(columns, "lrrrrlll", rows)
    return ["## Scores", SCORE_LEGEND, table, *([_image(SCORES_PLOT)] if has_plot else ())]


def _expectations(run: Run, records: Mapping[str, StageRecord]) -> list[str]:
    checked = check_expectations(run.state.expectations, metrics_by_name(records))
    intro = "The recipe expects these results:"
    return [intro, "\n".join(f"- {expectation}" for expectation in checked)] if checked else []


def _samples(folders: Mapping[str, StageFolder]) -> dict[str, str]:
    samples = {}
    for stage, folder in folders.items():
        if folder.samples.is_file():
            text = folder.samples.read_text(encoding="utf-8").strip()
            samples[stage] = text[:_SAMPLE_CHARS] + ("\n\n(shortened)" if len(text) > _SAMPLE_CHARS else "")
    return samples


def _notes(folders: Mapping[str, StageFolder]) -> dict[str, list[str]]:
    """Return the notes in the log of each stage, each once."""
    notes = {}
    for stage, folder in folders.items():
        if folder.log.is_file():
            lines = folder.log.read_text(encoding="utf-8", errors="replace").splitlines()
            marked = [line.removeprefix(NOTE_PREFIX) for line in lines if line.startswith(NOTE_PREFIX)]
            notes[stage] = list(dict.fromkeys(marked))[:_MAX_NOTES]
    return notes


def _note_section(notes: Mapping[str, list[str]]) -> list[str]:
    lines = [f"{stage}: {note}" for stage, stage_notes in notes.items() for note in stage_notes]
    return ["## Notes of the stages", indented("\n".join(lines))] if lines else []


def _source_lines(folders: Mapping[str, StageFolder]) -> list[str]:
    """Return what each stage wrote about the files that it read, each line once with the names of the stages."""
    stages: dict[str, list[str]] = {}
    for stage, folder in folders.items():
        if folder.sources.is_file():
            for line in json.loads(folder.sources.read_text(encoding="utf-8")):
                stages.setdefault(line, []).append(stage)
    return [f"{line} (read by {', '.join(names)})" for line, names in stages.items()]


def _cost_table(run: Run, records: Mapping[str, StageRecord]) -> str:
    columns = ("stage", "status", "time", "planned", "peak memory", "planned", "disk", "device")
    rows = []
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
        rows.append(cells)
    return markdown_table(columns, "llrrrrrl", rows)


def _facts(run: Run) -> str:
    state, provenance = run.state, run.state.provenance
    started = datetime.fromtimestamp(state.created).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    packages = ", ".join(f"{name} {version}" for name, version in provenance.packages.items())
    return "\n".join(
        [
            f"- command: `{state.command}`",
            f"- recipe: `{state.recipe}` (copied to [recipe.yaml](recipe.yaml); with everything that it extends and "
            "every `--set` applied: [config.yaml](config.yaml))",
            f"- started: {started} on {provenance.host}, {provenance.platform}, Python {provenance.python}",
            f"- commit: {provenance.git_commit or 'unknown'}{' with local changes' if provenance.git_dirty else ''}",
            f"- packages: {packages}",
            f"- seed: {state.seed}",
        ]
    )


def _fingerprint_table(records: Mapping[str, StageRecord]) -> str:
    rows = []
    for stage, record in records.items():
        data = ", ".join(f"{name} {digest[:12]}" for name, digest in record.source_digests.items())
        rows.append((stage, record.fingerprint[:12], record.output_digest[:12], data))
    return markdown_table(("stage", "fingerprint", "output", "data"), "llll", rows)


def _results_table(records: Mapping[str, StageRecord]) -> str:
    rows = [
        (x.stage, x.metric, show_value(x.value), *_uncertainty(x.stderr, x.count, x.chance))
        for x in list_results(records)
    ]
    return markdown_table(("stage", "metric", "value", "±", "problems", "guess"), "llrrrr", rows)


def _uncertainty(stderr: float | None, count: int | None, chance: float | None) -> tuple[str, str, str]:
    """Return the cells for standard error, number of problems and score of a guess."""
    error, guess = ("" if value is None else f"{value:.3g}" for value in (stderr, chance))
    return error, "" if count is None else f"{count:,}", guess
