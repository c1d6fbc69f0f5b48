"""Decides which files of a source belong to a split: of documents to train or validate on, or of rows.

The names of files and folders decide (`splits.split_of_names`). Validation and test files are never trained on,
unless the recipe lists all files one by one. Not here: documents that a hash holds out (`documents`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.data.files.content_checks import check_file
from nanochat.data.files.file_kinds import FileKind
from nanochat.data.files.selection.data_file import DataFile
from nanochat.data.files.selection.file_choice import NO_ROWS, FileChoice, list_reasons
from nanochat.data.sources.source_contents import list_files
from nanochat.data.sources.source_spec import SourceSpec, describe
from nanochat.data.splits import HELD_OUT_SPLITS, SPLIT_NAMES, canonical_split, may_be_held_out
from nanochat.errors import PreflightError

Split = Literal["train", "validation"]
Files = tuple[DataFile[Path], ...]

_NO_SPLIT = "no split in its name"


@dataclass(frozen=True)
class DocumentFiles:
    """The files of a source of documents.

    Attributes:
        train: files to train on. Without `validation`, a hash holds out some of their documents.
        validation: files whose documents are all held out.
        choice: the files of both, and those left out.
    """

    train: Files
    validation: Files
    choice: FileChoice[Path]


def document_files(spec: SourceSpec, *, base: Path) -> DocumentFiles:
    """Return the files of a source of documents, for training and for validation.

    Validation is the recipe's shard or hash. If the recipe gives neither, it is the validation files, else the test
    files; without such files a hash decides.

    Raises:
        PreflightError: the source or its validation shard is missing.
    """
    choice = list_files(spec, base=base, use="text")
    if spec.validation_shard is not None:
        return _with_shard(spec, spec.validation_shard, choice)
    if (note := _note_on_listed_files(choice.used, "train")) is not None:
        return DocumentFiles(choice.used, (), choice.with_note(note))
    train = tuple(file for file in choice.used if _split(file) not in HELD_OUT_SPLITS)
    if spec.validation_hash_frac is not None:
        reason = "held-out text by its name, but `validation.hash_frac` is given"
        return DocumentFiles(train, (), _with_note_on_names(choice.keep(train, reason), "train"))
    validation = _of_splits(choice.used, "validation", "dev")
    validation = validation or _of_splits(choice.used, "test")
    kept = choice.keep((*train, *validation), "test files are never trained on")
    return DocumentFiles(train, validation, _with_note_on_names(kept, "train"))


def _with_shard(spec: SourceSpec, shard: str, choice: FileChoice[Path]) -> DocumentFiles:
    validation = tuple(file for file in choice.used if file.path.name == shard)
    if not validation:
        names = ", ".join(path.name for path in choice.paths[:5])
        raise PreflightError(f"{describe(spec)}: no validation shard {shard}; its files are: {names}")
    others = tuple(file for file in choice.used if file not in validation)
    note = _note_on_listed_files(others, "train")
    train = others if note is not None else tuple(file for file in others if _split(file) not in HELD_OUT_SPLITS)
    kept = choice.keep((*train, *validation), "held-out text by its name, but `validation.shard` is given")
    return DocumentFiles(train, validation, kept.with_note(note))


def row_files(spec: SourceSpec, split: str, *, base: Path) -> FileChoice[Path]:
    """Return the files with the rows of a split: those with exactly this label, else those of this split.

    All files belong to every usual split if no name contains a split, or if a file that the recipe lists has none.

    Raises:
        PreflightError: the source or the split is missing; the message lists the splits that exist.
    """
    if spec.builtin is not None:
        raise PreflightError(f"{describe(spec)}: has no rows to read; give task data by `path` or `uri`")
    choice = list_files(spec, base=base, use="rows")
    choice = choice.keep((file for file in choice.used if file.kind and file.kind.has_rows), NO_ROWS)
    files = choice.used
    if not files:
        raise PreflightError(
            f"{describe(spec)}: none of its files holds rows; use parquet, jsonl, csv, tsv, json or arrow files"
        )
    labelled = [file for file in files if file.split is not None]
    wanted = canonical_split(split)
    exact = [file for file in labelled if file.split and file.split.label == split.lower()]
    if is_known := wanted in map(canonical_split, SPLIT_NAMES):
        if not labelled:
            return _with_note_on_names(choice, wanted)
        if (note := _note_on_listed_files(files, wanted)) is not None:
            return choice.with_note(note)
    kept = exact or [file for file in labelled if _split(file) == wanted]
    if not kept and wanted == "train":
        kept = [file for file in files if file.split is None]
    if not kept:
        raise PreflightError(f"{describe(spec)}: no file of split `{split}`; {_known_splits(files, is_known)}")
    choice = choice.keep([file for file in files if file in kept or file.split is not None], _NO_SPLIT)
    return _with_note_on_names(choice.keep(kept, "another split"), wanted)


def has_split(spec: SourceSpec, split: str, *, base: Path) -> bool:
    """Return whether a source has files of a split of their own, by their names."""
    return bool(_of_splits(list_files(spec, base=base, use="rows").used, split))


def with_content(choice: FileChoice[Path], why_left_out: Callable[[Path], str | None]) -> FileChoice[Path]:
    """Return the choice without the files for which a look inside gives a reason to leave them out."""
    for path in choice.paths:
        check_file(path)
    reasons = {file: why_left_out(file.path) for file in choice.used}
    for reason in sorted({reason for reason in reasons.values() if reason is not None}):
        choice = choice.keep([file for file in choice.used if reasons[file] != reason], reason)
    return choice


def _note_on_listed_files(files: Files, split: str) -> str | None:
    """Return why files that the recipe lists one by one are all used for a split, or None if names decide."""
    if not files or not all(file.is_named for file in files):
        return None
    splits = {_split(file) for file in files}
    if None in splits:
        return "" if len(splits) == 1 else "every listed file is used, because not every name contains a split"
    if split not in splits and len(splits) == 1:
        return f"the listed files are used for `{split}` although their names say `{splits.pop()}`"
    return None


def _with_note_on_names(choice: FileChoice[Path], split: str) -> FileChoice[Path]:
    """Return the choice with a note, if files are trained on although their names may mean test data."""
    doubtful = [
        (file.path, f"the name may mean test data: {_remedy(file.kind)}")
        for file in choice.used
        if file.split is None
        and file.kind is not None
        and not file.kind.is_code
        and (file.has_title or may_be_held_out(file.path.stem))
    ]
    if split != "train" or not doubtful:
        return choice
    return choice.with_note(f"trained on: {list_reasons(doubtful)}")


def _remedy(kind: FileKind) -> str:
    """Return how to hold out a file whose name may mean test data."""
    if not kind.has_rows:
        return "move it into a folder `test` then"
    return f"rename it then, for example to `test{kind.suffix}`"


def _known_splits(files: Files, is_known: bool) -> str:
    counts = Counter(file.split.label for file in files if file.split is not None)
    if not counts:
        assert not is_known, "without labels every usual split has all files"
        return "the names of its files contain no split: use `train`, or one of " + ", ".join(SPLIT_NAMES)
    known = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    return f"its splits (and numbers of files): {known}"


def _of_splits(files: Iterable[DataFile[Path]], *splits: str) -> Files:
    return tuple(file for file in files if _split(file) in splits)


def _split(file: DataFile[Path]) -> str | None:
    return file.split.split if file.split is not None else None
