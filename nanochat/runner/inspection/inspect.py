"""Looks at a source of a recipe: its files, and what each split of it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nanochat.data.ingest.pending import is_ready
from nanochat.data.source_splits import Split
from nanochat.data.sources import describe, is_available_offline
from nanochat.errors import RecipeError
from nanochat.plan.source_files import source_uses
from nanochat.runner.inspection.inputs import SourceInputs, chat_context, existing_tokenizer, source_inputs
from nanochat.runner.inspection.rendered_chats import look_at_task
from nanochat.runner.inspection.report import SplitReport
from nanochat.runner.inspection.texts import look_at_documents
from nanochat.runner.preflight.prepare import Prepared

SAMPLES = 3
"""Documents and conversations that are shown of each split."""
_SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class SourceReport:
    """A source's origin and files as lines of text, and what its splits are like."""

    heading: str
    facts: tuple[str, ...]
    splits: Iterator[SplitReport]
    """The splits are read one after the other, while they are asked for."""


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
            yield SourceReport(f"source `{source}`", ("no stage reads it",), iter(()))
        else:
            yield _inspect(prepared, inputs, limit)


def _inspect(prepared: Prepared, inputs: SourceInputs, limit: int) -> SourceReport:
    source, base = inputs.source, prepared.base
    if not is_ready(source, base=base):
        missing = "converted" if is_available_offline(source, base=base) else "downloaded"
        hint = f"it is not {missing} yet; `{prepared.loaded.command('fetch')}` does that"
        return SourceReport(describe(source), (hint,), iter(()))
    # The documents are counted below, as they are cut. Counting the files' would show another number.
    uses = (replace(use, rows=None) for use in source_uses(inputs.items, base=base, look_inside=True))
    files = (use.describe() for use in uses)
    return SourceReport(describe(source), (*files, *inputs.others), _splits(prepared, inputs, limit))


def _splits(prepared: Prepared, inputs: SourceInputs, limit: int) -> Iterator[SplitReport]:
    base, tokenizer = prepared.base, existing_tokenizer(prepared)
    for split in _SPLITS if inputs.has_documents else ():
        yield look_at_documents(inputs.source, split, base=base, tokenizer=tokenizer, limit=limit, samples=SAMPLES)
    context = chat_context(prepared.plan)
    for task in inputs.tasks:
        yield look_at_task(
            task, inputs.source, base=base, tokenizer=tokenizer, context=context, limit=limit, samples=SAMPLES
        )
