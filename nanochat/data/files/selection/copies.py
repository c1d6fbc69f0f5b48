"""Leaves out copies: files that, by their names, hold the same text as another file in a preferred format."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.data.files.file_kinds import stem_of
from nanochat.data.files.selection.data_file import AnyPath, DataFile, known_kind


def without_copies(files: Sequence[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
    """Return the files without copies of others in a preferred format.

    Only names are compared, so a file that the recipe chooses by its name or suffix is never taken for a copy.
    A copy has the stem of the other file in the same folder, such as `a.txt` or `a.jsonl.gz` beside `a.jsonl`; source
    code is only a copy of the same source code. Or a copy has the same split in the same folder or one that contains
    it, such as `x-train.txt` beside `data/train-00000-of-00004.parquet`.
    """
    stems: dict[object, tuple[int, str]] = {}
    splits: dict[object, list[DataFile[AnyPath]]] = {}
    for file in files:
        if not file.is_named:
            key, rank = _stem_and_rank(file)
            stems[key] = min(rank, stems.get(key, rank))
            if file.split is not None:
                splits.setdefault(file.split.label, []).append(file)
    # One file of each format, prefix and folder is enough to compare with.
    for label, entries in splits.items():
        splits[label] = list(
            {(known_kind(file).row_rank, file.split, file.path.parent): file for file in entries}.values()
        )

    def is_copy(file: DataFile[AnyPath]) -> bool:
        if file.is_named or file.has_chosen_kind:
            return False
        key, rank = _stem_and_rank(file)
        if stems[key] < rank:
            return True
        others = splits[file.split.label] if file.split is not None else []
        row_rank = known_kind(file).row_rank
        return any(known_kind(other).row_rank < row_rank and _are_same_part(file, other) for other in others)

    return [file for file in files if not is_copy(file)]


def _stem_and_rank(file: DataFile[AnyPath]) -> tuple[object, tuple[int, str]]:
    """Return a key that copies of one text in several formats share, and a rank: the lowest one is read."""
    kind = known_kind(file)
    key = (file.path.parent, stem_of(file.path).lower(), kind.format if kind.is_code else "")
    return key, (kind.rank, kind.compression or "")


def _are_same_part(file: DataFile[AnyPath], other: DataFile[AnyPath]) -> bool:
    """Return whether two files of one label are the same part of a data set, by their folders and prefixes."""
    assert file.split is not None and other.split is not None, "both have a label"
    folder, other_folder = file.path.parent, other.path.parent
    is_near = folder.is_relative_to(other_folder) or other_folder.is_relative_to(folder)
    prefixes = {file.split.prefix, other.split.prefix} - {""}
    return is_near and len(prefixes) < 2
