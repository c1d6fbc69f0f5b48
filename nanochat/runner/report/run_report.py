"""Writes the report of a run: what it did, its scores, curves and samples, what it cost, and how to repeat it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from nanochat.plan.quantities import show_bytes, show_duration
from nanochat.runner.report.html import render_html
from nanochat.runner.report.markdown import code_span, escape, join_parts, markdown_table, paragraphs, plot_image
from nanochat.runner.report.plots import REWARD_PLOT, SCORES_PLOT, draw_curves, draw_scores
from nanochat.runner.report.results import check_expectations, list_results, metrics_by_name
from nanochat.runner.report.scores import SCORE_LEGEND, describe_stages, list_scores
from nanochat.runner.report.stage_files import damaged_files, readable_folders, sample_texts, source_lines, stage_notes
from nanochat.runner.store.record import StageRecord
from nanochat.runner.store.run_catalog import Run
from nanochat.stages.process.context import indented
from nanochat.storage.files import write_text
from nanochat.terminal.output import printable

_CURVES_INTRO = """\
The loss measures how badly the model predicts the next token: it is the negative logarithm of the probability that the
model gave to the right one, on average. Bits per byte (bpb) is the same measure per byte of text, so that models with
different tokenizers can be compared. Lower is better for both. If suites ran during training, their scores follow."""
_REWARD_INTRO = """\
The reward is what the model's own answers to practice questions earn on average. The score is the share of held-out
questions that it answers right. Higher is better for both."""
_SAMPLES_INTRO = "Text that the models wrote. The prompts come from the recipe."
_COST_INTRO = """\
Planned values were estimated before the run. The time includes interrupted attempts. Rows are those that one process
reads per forward pass of training; fewer than planned take more passes per step and change nothing but rounding."""
_FINGERPRINT_INTRO = """\
A fingerprint is a hash of everything that decides a stage's result: its recipe fields, its data, the seed, its code
version, and the outputs of earlier stages. A later run with the same fingerprint reuses the result. The hashes here are
shortened."""


def write_report(run: Run, base: Path, *, with_plots: bool = True) -> Path:
    """Write `report.md`, `report.html` and the plots into the run's folder, and return the path of `report.md`."""
    folder = run.folder
    plots = _draw(run, base) if with_plots else []
    text = report_text(run, base, plots=[path.name for path in plots])
    pictures = {f"{folder.plots.name}/{path.name}": path for path in plots}
    page = render_html(text, pictures, attached=(folder.recipe, folder.resolved, folder.plan_text))
    write_text(folder.report_page, page)
    write_text(folder.report, text)
    return folder.report


def report_text(run: Run, base: Path, *, plots: Sequence[str]) -> str:
    """Return the report as markdown. `plots` names the images in `plots/`.

    Of stages whose results are not here, it says which they are and where they were searched.
    """
    state, records, lost = run.state, run.records(base), run.lost(base)
    folders, damaged = readable_folders(run, base), damaged_files(run, base)
    happened = "\n".join(f"- {sentence}" for sentence in describe_stages(records))
    sources, samples = source_lines(folders, damaged), sample_texts(folders, damaged)
    missing = [run.describe_lost(base, lost)] if lost else []
    missing += [f"{path} {damage}, so it is not shown. Run the recipe again." for path, damage in damaged.items()]
    curves = [plot_image(name) for name in plots if name != SCORES_PLOT]
    reward_intro = [_REWARD_INTRO] if REWARD_PLOT in plots else []
    parts = [
        f"# {escape(state.name)}",
        paragraphs(state.description),
        _outcome(state.status, state.message),
        *(["## Missing", *map(paragraphs, missing)] if missing else ()),
        *(["## What happened", happened or "No stage is finished yet."] if happened or not lost else ()),
        *_note_section(stage_notes(folders), sources),
        *_scores(records, has_plot=SCORES_PLOT in plots),
        *_expectations(run, records),
        *(["## Data", indented("\n".join(sources))] if sources else ()),
        *(["## Learning curves", _CURVES_INTRO, *reward_intro, *curves] if curves else ()),
        *(["## Samples", _SAMPLES_INTRO, *map(_sample_section, samples.values())] if samples else ()),
        "## Time and memory",
        _COST_INTRO,
        _cost_table(run, records),
        "\n".join(f"- {line}" for line in suite_shares(records)),
        "## What was run",
        _facts(run),
        *([_FINGERPRINT_INTRO, _fingerprint_table(records)] if records else ()),
        *(["## All results", _results_table(records)] if records else ()),
    ]
    return join_parts(parts) + "\n"


def _draw(run: Run, base: Path) -> list[Path]:
    series = {stage: folder.metrics for stage, folder in readable_folders(run, base).items()}
    damaged = damaged_files(run, base)
    existing = {stage: path for stage, path in series.items() if path.is_file() and path not in damaged}
    suites = list_scores(run.records(base))
    return [*draw_scores(suites, run.folder.plots), *draw_curves(existing, run.folder.plots)]


def _outcome(status: str, message: str) -> str:
    """Return how the run ended. A message of several lines, which may be a traceback, is shown as code."""
    if "\n" in message.strip():
        return f"**{escape(status)}**:\n\n{indented(message)}"
    return f"**{escape(status)}**" + (f": {escape(message)}" if message else "")


def _sample_section(samples: str) -> str:
    """Return a stage's samples with headings two levels lower. All but headings and indented code is escaped."""
    blocks: list[str] = []
    for is_code, lines in itertools.groupby(printable(samples).splitlines(), key=lambda line: line[:4].isspace()):
        if is_code:
            blocks.append(indented("\n".join(line[4:] for line in lines)))
        else:
            blocks.append("\n".join(map(_lower_heading, lines)))
    return "\n\n".join(blocks)  # without an empty line before it, indented text would not be code


def _lower_heading(line: str) -> str:
    """Return a line with its text escaped and, if it is a heading, two levels lower."""
    heading = re.match(r"#{1,4} ", line)
    return escape(line) if heading is None else f"##{heading[0]}{escape(line[heading.end() :])}"


def _scores(records: Mapping[str, StageRecord], *, has_plot: bool) -> list[str]:
    suites = list_scores(records)
    if not suites:
        return []
    columns = ("evaluation", "score", "±", "problems", "guess", "reading", "what the task asks", "cut")
    rows = [(suite.label, *suite.cells, suite.reading, suite.asks, suite.cut) for suite in suites]
    table = markdown_table(columns, "lrrrrlll", rows)
    return ["## Scores", SCORE_LEGEND, table, *([plot_image(SCORES_PLOT)] if has_plot else ())]


def _expectations(run: Run, records: Mapping[str, StageRecord]) -> list[str]:
    checked = check_expectations(run.state.expectations, metrics_by_name(records))
    intro = "The recipe expects these results:"
    return [intro, "\n".join(f"- {escape(str(expectation))}" for expectation in checked)] if checked else []


def _note_section(notes: Mapping[str, list[str]], sources: Sequence[str]) -> list[str]:
    """Return the notes, each once with the names of its stages, without those that `sources` begin with."""
    stages: dict[str, list[str]] = {}
    for stage, noted in notes.items():
        for note in noted:
            stages.setdefault(note, []).append(stage)
    lines = [
        f"{', '.join(names)}: {note}"
        for note, names in stages.items()
        if not any(line.startswith(f"{note} (read by ") for line in sources)
    ]
    return ["## Notes of the stages", indented("\n".join(lines))] if lines else []


def suite_shares(records: Mapping[str, StageRecord]) -> list[str]:
    """Return a sentence for each stage that ran suites while it trained: their share of its time, and that planned."""
    lines = []
    for stage, record in records.items():
        measured, planned = record.measured, record.planned
        if measured.suite_seconds is None or not measured.seconds:
            continue
        share = f"{stage}: suites during training took {measured.suite_seconds / measured.seconds:.0%} of the time"
        if planned.suite_seconds is None or not planned.seconds:
            lines.append(f"{share}; the plan could not know.")
        else:
            lines.append(f"{share}, planned {planned.suite_seconds / planned.seconds:.0%}.")
    return lines


def _cost_table(run: Run, records: Mapping[str, StageRecord]) -> str:
    columns = ("stage", "status", "time", "planned", "peak memory", "planned", "rows", "planned", "disk", "device")
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
            *(str(x.micro_batch_size) if x and x.micro_batch_size else "-" for x in (measured, planned)),
            show_bytes(measured.disk_bytes if measured else None),
            record.device if record else "",
        )
        rows.append(cells)
    return markdown_table(columns, "llrrrrrrrl", rows)


def _facts(run: Run) -> str:
    state, provenance = run.state, run.state.provenance
    started = datetime.fromtimestamp(state.created).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    packages = ", ".join(f"{name} {version}" for name, version in provenance.packages.items())
    commit = f"{provenance.git_commit or 'unknown'}{' with local changes' if provenance.git_dirty else ''}"
    machine = f"{started} on {provenance.host}, {provenance.platform}, Python {provenance.python}"
    return "\n".join(
        [
            f"- command: {code_span(state.command)}",
            f"- recipe: {code_span(state.recipe)} (copied to [recipe.yaml](recipe.yaml); with everything that it "
            "extends and every `--set` applied: [config.yaml](config.yaml))",
            f"- started: {escape(machine)}",
            f"- commit: {escape(commit)}",
            f"- packages: {escape(packages)}",
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
    rows = [(result.stage, result.metric, *result.cells) for result in list_results(records)]
    return markdown_table(("stage", "metric", "value", "±", "problems", "guess"), "llrrrr", rows)
