"""Reads the documents of a source for a survey."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from nanochat.data.documents import single_pass
from nanochat.data.source_splits import Split
from nanochat.data.sources import SourceSpec, as_preflight_error
from nanochat.errors import PreflightError
from nanochat.runner.inspection.report import SplitReport
from nanochat.tokenizer.bpe import Tokenizer

_BATCH_DOCUMENTS = 64


def look_at_documents(
    spec: SourceSpec, split: Split, *, base: Path, tokenizer: Tokenizer | None, limit: int, samples: int
) -> SplitReport:
    """Return what the first `limit` documents of a split are like. Without a tokenizer, no tokens are counted.

    An error ends the reading. It is kept in the report, with what was read before.
    """
    report = SplitReport(split, "documents", limit)
    try:
        with as_preflight_error(spec):
            documents = single_pass(spec, split, base=base, notify=report.notes.append)
            while batch := list(islice(documents, min(_BATCH_DOCUMENTS, limit - len(report.survey.lengths)))):
                for text in batch:
                    report.survey.add(text)
                if tokenizer is not None:
                    report.survey.token_lengths += [len(ids) for ids in tokenizer.encode_batch(batch)]
                report.texts += batch[: samples - len(report.texts)]
            report.is_whole = next(documents, None) is None
    except PreflightError as error:
        report.error = error
    return report
