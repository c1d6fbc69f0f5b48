"""Describes where an exported model comes from, for its card: scores, data, stages and recipe of its run.

Everything from elsewhere is escaped or indented as code, as in the report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import RecipeError
from nanochat.runner.report.markdown import escape, join_parts, markdown_table, paragraphs
from nanochat.runner.report.scores import list_scores
from nanochat.runner.store.record import StageRecord
from nanochat.runner.store.run_catalog import latest_with_model
from nanochat.stages.process.context import indented

_SCORES_INTRO = (
    "What our own evaluation measured before the export. ± is the standard error; a guess answers at random."
)
_STAGES_INTRO = (
    "Each stage with the hash of all that decides its result, that of its output, and the version of its code."
)


@dataclass(frozen=True, kw_only=True)
class ModelOrigin:
    """The run that made a model, as far as it is known."""

    name: str
    description: str
    recipe: str
    """The recipe with everything that it extends."""
    records: Mapping[str, StageRecord]
    """The finished stages."""


def describe_origin(origin: ModelOrigin) -> str:
    """Return the origin as Markdown."""
    records = origin.records
    return join_parts(
        [
            f"The run {escape(origin.name)} made this model with nanochat.",
            paragraphs(origin.description),
            *_scores(records),
            *_data(records),
            "## Stages",
            _STAGES_INTRO,
            _stages(records),
            "## Recipe",
            indented(origin.recipe),
        ]
    )


def origin_of_model(model: Path, reference: str, base: Path) -> str:
    """Return the origin of a model as Markdown: empty unless the run `reference` made it."""
    try:
        run = latest_with_model(reference, base)
    except RecipeError:
        return ""
    if model not in {folder.model.resolve() for folder in run.folders(base).values()}:
        return ""
    recipe = run.folder.resolved.read_text(encoding="utf-8") if run.folder.resolved.is_file() else ""
    known = ModelOrigin(
        name=run.state.name, description=run.state.description, recipe=recipe, records=run.records(base)
    )
    return describe_origin(known)


def _scores(records: Mapping[str, StageRecord]) -> list[str]:
    rows = [(suite.label, *suite.score.cells, suite.asks) for suite in list_scores(records)]
    columns = ("evaluation", "score", "±", "problems", "guess", "what the task asks")
    return ["## Scores", _SCORES_INTRO, markdown_table(columns, "lrrrrl", rows)] if rows else []


def _data(records: Mapping[str, StageRecord]) -> list[str]:
    rows = [
        (stage, source, digest, record.source_commits.get(source, ""))
        for stage, record in records.items()
        for source, digest in record.source_digests.items()
    ]
    return ["## Data", markdown_table(("stage", "source", "sha256", "commit"), "llll", rows)] if rows else []


def _stages(records: Mapping[str, StageRecord]) -> str:
    rows = [
        (stage, record.fingerprint, record.output_digest, record.provenance.git_commit or "unknown")
        for stage, record in records.items()
    ]
    return markdown_table(("stage", "fingerprint", "output", "code"), "llll", rows)
