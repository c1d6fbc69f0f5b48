"""The specification of a source, as a plan has it. Planning a run imports this module, so it imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from nanochat.data.files.selection.path_patterns import literal_path
from nanochat.data.places.builtin import stdlib_corpus
from nanochat.errors import PreflightError, StageError

ReadAs = Literal["text", "chats", "rows", "bundle"]
QuestionMap = tuple[tuple[Literal["question", "answer", "choices"], tuple[str, ...]], ...]
"""The keys, or texts with keys in braces, that hold the parts of a question."""
DEFAULT_VALIDATION_FRAC = 0.01


@dataclass(frozen=True, kw_only=True)
class SourceSpec:
    """A source of the plan. Exactly one of `uri`, `path` and `builtin` is set."""

    name: str
    uri: str | None = None
    revision: str | None = None
    sha256: str | None = None
    path: tuple[str, ...] | None = None
    builtin: Literal["python-stdlib", "spelling"] | None = None
    column: str = "text"
    chat_map: tuple[tuple[Literal["system", "user", "assistant"], str], ...] = ()
    question_map: QuestionMap = ()
    max_bad_rows: float = 0.01
    max_files: int | None = None
    max_document_chars: int | None = None
    dedup: Literal["exact"] | None = None
    validation_shard: str | None = None
    validation_hash_frac: float | None = None
    read_as: ReadAs | None = None
    """What the recipe reads the source as; None if it is several of these, or not known."""


def describe(spec: SourceSpec) -> str:
    """Return the source's name and origin, for messages."""
    origin = spec.uri or spec.builtin or ", ".join(str(literal_path(pattern)) for pattern in spec.path or ())
    return f"source `{spec.name}` ({origin})"


def validation_frac(spec: SourceSpec) -> float:
    """Return the fraction of documents that a hash holds out if the source names no validation shard."""
    if spec.validation_hash_frac is not None:
        return spec.validation_hash_frac
    return stdlib_corpus.VALIDATION_FRAC if spec.builtin == "python-stdlib" else DEFAULT_VALIDATION_FRAC


@contextmanager
def as_preflight_error(spec: SourceSpec) -> Iterator[None]:
    """Raise errors of reading a source as preflight errors whose message names the source."""
    try:
        yield
    except (PreflightError, StageError) as error:
        text, name = str(error), f"source `{spec.name}`"
        if name not in text:
            text = f"{name}: {text}" if spec.uri is not None and spec.uri in text else f"{describe(spec)}: {text}"
        raise PreflightError(text) from error
