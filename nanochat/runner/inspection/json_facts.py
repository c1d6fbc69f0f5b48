"""What `nanochat-run data` shows of a source, as JSON values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from pydantic import JsonValue

from nanochat.runner.inspection.inspect import SourceReport
from nanochat.runner.inspection.report import QUANTILES, SHOWN_CHARS, Run, SplitReport, quantiles


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


def _runs_to_json(runs: Iterable[Run]) -> list[JsonValue]:
    """Return the start of a conversation in runs of text."""
    shown: list[JsonValue] = []
    left = SHOWN_CHARS
    for text, is_trained in runs:
        if left > 0:
            shown.append({"text": text[:left], "is_trained": is_trained})
        left -= len(text)
    return shown
