"""Reports on the sources of a recipe, for `nanochat-run data`: files, first rows, and each split. Also as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from pydantic import JsonValue

from nanochat.data.ingest.pending import files_to_convert
from nanochat.data.ingest.preview import FilePreview, preview
from nanochat.data.source_splits import Split
from nanochat.data.sources.source_downloads import is_available_offline
from nanochat.data.sources.source_spec import describe
from nanochat.errors import RecipeError
from nanochat.plan.text.source_files import SourceUse, source_uses
from nanochat.runner.inspection.source_inputs import SourceInputs, chat_context, existing_tokenizer, source_inputs
from nanochat.runner.inspection.split_report import (
    QUANTILES,
    SHOWN_CHARS,
    SplitReport,
    TextRun,
    describe_preview,
    quantiles,
)
from nanochat.runner.inspection.survey_splits import survey_documents, survey_task
from nanochat.runner.preflight.prepare import Prepared

SAMPLES = 3
"""Documents and conversations that are shown of each split, and rows of each table that is not converted yet."""
_PREVIEWED_FILES = 3
_SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class SourceReport:
    """A source's origin and files, and what its splits are like."""

    name: str
    heading: str
    uses: tuple[SourceUse, ...] = ()
    """The files that stages read."""
    remarks: tuple[str, ...] = ()
    """Other readers of the source, and why its splits are not shown."""
    previews: tuple[FilePreview, ...] = ()
    """The first rows of tables that are not converted yet."""
    splits: Iterable[SplitReport] = ()
    """The splits are read one after the other, while they are asked for."""

    @property
    def facts(self) -> list[str]:
        """The files, remarks and previews of the source, as lines of text."""
        previews = [line for preview in self.previews for line in describe_preview(preview)]
        warnings = [f"warning: {warning}" for use in self.uses for warning in use.warnings]
        return [*(use.describe() for use in self.uses), *warnings, *self.remarks, *previews]


def inspect_sources(prepared: Prepared, name: str | None, *, limit: int) -> Iterator[SourceReport]:
    """Yield a report on each source of a recipe, or on the source with this name; read at most `limit` texts of each.

    Raises:
        RecipeError: the recipe has no such source.
    """
    known = prepared.loaded.recipe.sources
    if name is not None and name not in known:
        raise RecipeError(f"the recipe has no source `{name}`; it has: {', '.join(known) or 'none'}")
    for source in known if name is None else (name,):
        inputs = source_inputs(prepared.plan, source)
        if inputs is None:
            yield SourceReport(source, f"source `{source}`", remarks=("no stage reads it",))
        else:
            yield _inspect(prepared, inputs, limit)


def _inspect(prepared: Prepared, inputs: SourceInputs, limit: int) -> SourceReport:
    source, base = inputs.source, prepared.base
    if not is_available_offline(source, base=base):
        remark = f"it is not downloaded yet; `{prepared.loaded.command('fetch')}` does that"
        return SourceReport(source.name, describe(source), remarks=(remark,))
    if unconverted := files_to_convert(source, base=base):
        remark = f"it is not converted yet; `{prepared.loaded.command('fetch')}` does that"
        found = (preview(path, rows=SAMPLES) for path in unconverted[:_PREVIEWED_FILES])
        previews = tuple(table for table in found if table is not None)
        uses = tuple(source_uses(inputs.items, base=base))
        warnings = _column_warnings(inputs, previews)
        remarks = (*warnings, *inputs.others, remark)
        return SourceReport(source.name, describe(source), uses=uses, remarks=remarks, previews=previews)
    # The documents are counted below, as they are cut. Counting the files' would show another number.
    uses = tuple(replace(use, rows=None) for use in source_uses(inputs.items, base=base, look_inside=True))
    splits = _splits(prepared, inputs, limit)
    return SourceReport(source.name, describe(source), uses=uses, remarks=inputs.others, splits=splits)


def _column_warnings(inputs: SourceInputs, previews: Sequence[FilePreview]) -> list[str]:
    """Return a warning for each table without the column whose texts are the documents of the source."""
    column = inputs.source.column
    if not inputs.has_documents:
        return []
    return [
        f"{table.path.name} has no column `{column}`: set `sources.{inputs.source.name}.column`"
        for table in previews
        if table.columns and column not in table.columns
    ]


def _splits(prepared: Prepared, inputs: SourceInputs, limit: int) -> Iterator[SplitReport]:
    base, tokenizer = prepared.base, existing_tokenizer(prepared)
    for split in _SPLITS if inputs.has_documents else ():
        yield survey_documents(inputs.source, split, base=base, tokenizer=tokenizer, limit=limit, samples=SAMPLES)
    context = chat_context(prepared.plan)
    for task in inputs.tasks:
        yield survey_task(
            task, inputs.source, base=base, tokenizer=tokenizer, context=context, limit=limit, samples=SAMPLES
        )


def source_to_json(source: SourceReport) -> dict[str, JsonValue]:
    """Return a source and its splits as JSON values, after reading all of its splits."""
    return {
        "source": source.name,
        "origin": source.heading,
        "files": [{"paths": [str(path) for path in use.files.paths], **use.to_json()} for use in source.uses],
        "remarks": list(source.remarks),
        "previews": [{**asdict(preview), "path": str(preview.path)} for preview in source.previews],
        "splits": [_split_to_json(split) for split in source.splits],
    }


def _split_to_json(split: SplitReport) -> dict[str, JsonValue]:
    survey = split.survey
    return {
        "split": split.title,
        "unit": split.unit,
        "count": len(survey.lengths),
        "is_whole": split.is_whole,
        "bytes": survey.size_bytes,
        "characters": _quantiles_to_json(survey.lengths),
        "tokens": _quantiles_to_json(survey.token_lengths),
        "scripts": dict(survey.scripts()),
        "duplicates": survey.duplicates,
        "notes": list(split.notes),
        "documents": [text[:SHOWN_CHARS] for text in split.texts],
        "conversations": [_runs_to_json(runs) for runs in split.chats],
        "error": None if split.error is None else str(split.error),
    }


def _quantiles_to_json(values: Sequence[int]) -> JsonValue:
    """Return the sum of some lengths and their quantiles, by share in percent. None without any."""
    if not values:
        return None
    shares = {f"{share:.0%}": value for share, value in zip(QUANTILES, quantiles(values), strict=True)}
    return {"sum": sum(values), "quantiles": dict(shares)}


def _runs_to_json(runs: Iterable[TextRun]) -> list[JsonValue]:
    """Return the start of a conversation in runs of text."""
    shown: list[JsonValue] = []
    left = SHOWN_CHARS
    for text, is_trained in runs:
        if left > 0:
            shown.append({"text": text[:left], "is_trained": is_trained})
        left -= len(text)
    return shown
