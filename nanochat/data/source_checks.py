"""Checks before a run that documents and task rows can be read.

Small sources are read whole, so that a bad row does not stop a run after hours of pretraining. Of large ones only the
beginning is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from nanochat.data.documents import single_pass
from nanochat.data.files.bad_rows import RowProblems, shown
from nanochat.data.files.content_checks import why_without_text
from nanochat.data.files.file_sizes import are_small
from nanochat.data.files.selection.file_choice import list_reasons
from nanochat.data.ingest.store import parts_by_file
from nanochat.data.source_splits import Split, document_files, with_content
from nanochat.data.sources.source_spec import SourceSpec, as_preflight_error, describe, validation_frac
from nanochat.data.task_rows import first_rows, iter_rows, split_files
from nanochat.errors import PreflightError
from nanochat.plurals import several

_TINY_SHARE = 0.1
"""The user is warned if less than this part of the share to be held out is held out."""


def check_documents(
    spec: SourceSpec, splits: Sequence[Split], *, base: Path, notify: Callable[[str], None] = lambda note: None
) -> None:
    """Check that the files of a source can be read and hold text, and that each of `splits` has a document.

    `notify` receives notes on bad rows, as far as the source is read.

    Raises:
        PreflightError: the message names the source and the file, or all files if none holds text.
    """
    with as_preflight_error(spec):
        if spec.builtin == "python-stdlib":
            return
        files, problems = document_files(spec, base=base), RowProblems()
        parts = parts_by_file(files.choice.paths, base=base)

        def reason_of(path: Path) -> str | None:
            return why_without_text(parts[path], spec.column, problems)

        choice = with_content(files.choice, reason_of)
        if spec.builtin is None and not choice.used:
            bad = f"; bad rows:{shown(problems.examples)}" if problems.bad else ""
            raise PreflightError(f"no file holds text; left out: {list_reasons(choice.left_out)}{bad}")
        is_whole = are_small(files.choice.paths)
        chars: dict[Split, int] = dict.fromkeys(splits, 0)
        for split in splits:
            for text in islice(single_pass(spec, split, base=base, notify=notify), None if is_whole else 1):
                chars[split] += len(text)
        if is_whole and not files.validation:
            _check_share(spec, chars, notify)


def _check_share(spec: SourceSpec, chars: Mapping[Split, int], notify: Callable[[str], None]) -> None:
    """Warn if the hash has held out far less text than it should. `chars` are the characters of both splits."""
    total = sum(chars.values())
    if len(chars) < 2 or chars["validation"] >= _TINY_SHARE * validation_frac(spec) * total:
        return
    notify(
        f"{describe(spec)}: only {several(chars['validation'], 'character')} of {total:,} are held out, because each "
        "document is held out whole or not at all; the validation loss says little; raise `validation.hash_frac`, or "
        "cut long documents with `max_document_chars`"
    )


def check_rows(
    spec: SourceSpec,
    split: str,
    parse: Callable[[dict[str, object]], object],
    *,
    base: Path,
    max_rows: int | None = None,
) -> None:
    """Check that `parse` accepts the first row of each file of a split.

    If the split is small, check all of its rows, or the first `max_rows`.

    Raises:
        PreflightError: the message names the source and the row's place, and contains the error that `parse` raised.
    """
    with as_preflight_error(spec):
        for row in first_rows(spec, split, base=base):
            row.parse(parse)
        if is_small(spec, split, base=base):
            for row in islice(iter_rows(spec, split, base=base), max_rows):
                row.parse(parse)


def is_small(spec: SourceSpec, split: str, *, base: Path) -> bool:
    """Return whether the files of a split are small enough to be read whole.

    Raises:
        PreflightError: the source or the split is missing.
    """
    return are_small(file.path for file in split_files(spec, split, base=base))
