"""Chooses the data files to read among the files found, and gives the reasons for leaving out the others."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import Generic, TypeVar

from nanochat.data.files.file_kinds import GROUPS, FileKind, kind_of, stem_of
from nanochat.data.splits import SplitLabel, split_of_names, splits_of_twins

AnyPath = TypeVar("AnyPath", bound=PurePath)

HIDDEN = "hidden"
EMPTY = "empty"
NO_USABLE_ROW = "no usable row"
_SHOWN_NAMES = 3
UNREAD_KIND = "neither text nor rows, by its suffix"
OTHER_GROUP = "beside files of a kind that is read first; name it or its suffix to read it"
COPY = "taken for the same text as a file of another format, by its name; name it or its suffix to read it"
DESCRIPTION = "describes the other files, by its name"
_DESCRIPTIONS = ("changelog", "citation", "contributing", "copying", "licence", "license", "notice", "readme")


@dataclass(frozen=True)
class DataFile(Generic[AnyPath]):
    """A file of a source."""

    path: AnyPath
    name: PurePath
    """The path below the folder that contains everything. This folder's own name is not a split."""
    size: int
    is_named: bool = False
    """Whether the recipe names the file itself, not a folder or a pattern."""
    has_chosen_kind: bool = False
    """Whether the recipe's pattern contains the file's suffix, such as `*.md`."""
    twin_split: SplitLabel | None = None
    """The split that the names of the other files show."""

    @cached_property
    def split(self) -> SplitLabel | None:
        """The split in the name, or None."""
        return split_of_file(self.name) or self.twin_split

    @cached_property
    def kind(self) -> FileKind | None:
        """The kind of the file's suffix, or None."""
        return kind_of(self.path)

    @property
    def describes_others(self) -> bool:
        """Whether the file is a readme, a licence or the like, by its name."""
        return stem_of(self.path).lower() in _DESCRIPTIONS


@dataclass(frozen=True)
class FileChoice(Generic[AnyPath]):
    """The files to read, in order, and the files left out. Together they are all files found."""

    used: tuple[DataFile[AnyPath], ...]
    left_out: tuple[tuple[AnyPath, str], ...]
    """Path and reason. A hidden folder counts as one file."""
    notes: tuple[str, ...] = field(default=())

    @property
    def paths(self) -> tuple[AnyPath, ...]:
        """The paths of the files to read."""
        return tuple(file.path for file in self.used)

    @property
    def found(self) -> int:
        """The number of files found."""
        return len(self.used) + len(self.left_out)

    def keep(self, used: Iterable[DataFile[AnyPath]], reason: str, note: str | None = None) -> FileChoice[AnyPath]:
        """Return the choice with only the files in `used`; the others are left out for `reason`."""
        kept = set(used)
        others = tuple((file.path, reason) for file in self.used if file not in kept)
        notes = (*self.notes, note) if note else self.notes
        return FileChoice(tuple(file for file in self.used if file in kept), self.left_out + others, notes)


@dataclass(frozen=True)
class FileSelection:
    """The first `max_files` files of each split, and the validation shard in addition. No split counts as `train`."""

    max_files: int | None = None
    validation_shard: str | None = None

    def select(
        self, files: Iterable[DataFile[AnyPath]], left_out: Iterable[tuple[AnyPath, str]] = ()
    ) -> FileChoice[AnyPath]:
        """Return the data files with content, each text in one format only, in the order of their paths."""
        choice = FileChoice(tuple(_with_twin_splits(files)), tuple(left_out))
        choice = choice.keep([file for file in choice.used if file.is_named or file.kind is not None], UNREAD_KIND)
        choice = choice.keep([file for file in choice.used if file.size > 0], EMPTY)
        choice = choice.keep(_without_descriptions(choice.used), DESCRIPTION)
        choice = choice.keep(_of_first_group(choice.used), OTHER_GROUP)
        choice = choice.keep(_without_copies(choice.used), COPY)
        return choice.keep(self._first_files(choice.used), "beyond `max_files`")

    def _first_files(self, files: Sequence[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
        counts: Counter[str] = Counter()
        kept = []
        for file in files:
            split = file.split.split if file.split else "train"
            is_shard = file.path.name == self.validation_shard
            counts[split] += not is_shard
            if is_shard or self.max_files is None or counts[split] <= self.max_files:
                kept.append(file)
        return kept


def split_of_file(path: PurePath) -> SplitLabel | None:
    """Return the split in the file's name, else in the name of the nearest folder that contains one, else None.

    `path` is relative to the source's folder, because that folder's own name does not decide the split.
    """
    kind = kind_of(path)
    return split_of_names((stem_of(path), *reversed(path.parts[:-1])), is_data=kind is not None and kind.is_data)


def _with_twin_splits(files: Iterable[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
    """Return the files, sorted by path, with the splits that only the names of other files show. Programs have none."""
    in_order = sorted(files, key=lambda file: file.path)
    splits = splits_of_twins(str(file.name) for file in in_order if file.kind is not None and not file.kind.is_code)
    return [replace(file, twin_split=split) if (split := splits.get(str(file.name))) else file for file in in_order]


def list_reasons(left_out: Iterable[tuple[AnyPath, str]], used: Iterable[AnyPath] = ()) -> str:
    """Return the names of files left out, the first ones of each reason: `a.md, b.md and 7 more (not .txt)`."""
    reasons: dict[str, list[AnyPath]] = {}
    for path, reason in left_out:
        reasons.setdefault(reason, []).append(path)
    beside = [*itertools.chain(*reasons.values()), *used]
    return "; ".join(f"{list_names(short_names(paths, beside))} ({reason})" for reason, paths in reasons.items())


def short_names(paths: Sequence[AnyPath], beside: Iterable[AnyPath] = ()) -> list[str]:
    """Return the names of files, with their folders where others, those in `beside` included, have the same name."""
    same_name: dict[str, set[str]] = {path.name: set() for path in paths}
    for path in itertools.chain(paths, beside):
        if path.name in same_name:
            same_name[path.name].add(str(path))
    common = {name: os.path.commonpath(same) for name, same in same_name.items() if len(same) > 1}
    return [str(path.relative_to(common[path.name])) if path.name in common else path.name for path in paths]


def list_names(names: Sequence[str], *, most: int = _SHOWN_NAMES) -> str:
    """Return the first names on one line, with the number of the others: `a.md, b.md, c.md and 7 more`."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def contains_suffix(pattern: str, name: str) -> bool:
    """Return whether a pattern contains the suffix of the file it matches, as `*.md` does and `notes*` does not."""
    kind = kind_of(pattern)
    return kind is not None and kind == kind_of(name)


def _without_descriptions(files: Sequence[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
    """Return the files without readmes, licences and the like, if there are rows, tables or txt files beside them."""
    contents = [file for file in _unchosen(files) if not file.describes_others]
    has_data = any(_kind(file).group in ("rows", "tables") or _is_txt(file) for file in contents)
    left_out = {file for file in _unchosen(files) if has_data and file.describes_others and not _is_txt(file)}
    return [file for file in files if file not in left_out]


def _of_first_group(files: Sequence[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
    """Return the files that the recipe chooses by name or kind, and of the others those of the first group.

    A txt file is read beside rows as well.
    """
    contents = [file for file in _unchosen(files) if not file.describes_others] or _unchosen(files)
    first = min((_kind(file).group for file in contents), key=GROUPS.index, default=None)
    left_out = {file for file in _unchosen(files) if _kind(file).group != first}
    if first == "rows":
        left_out = {file for file in left_out if not _is_txt(file)}
    return [file for file in files if file not in left_out]


def _unchosen(files: Iterable[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
    return [file for file in files if not (file.is_named or file.has_chosen_kind)]


def _is_txt(file: DataFile[AnyPath]) -> bool:
    return _kind(file).format == ".txt"


def _without_copies(files: Sequence[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
    """Return the files without those that hold the text of another file in a format that is read less well.

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
        splits[label] = list({(_kind(file).row_rank, file.split, file.path.parent): file for file in entries}.values())

    def is_copy(file: DataFile[AnyPath]) -> bool:
        if file.is_named or file.has_chosen_kind:
            return False
        key, rank = _stem_and_rank(file)
        if stems[key] < rank:
            return True
        others = splits[file.split.label] if file.split is not None else []
        row_rank = _kind(file).row_rank
        return any(_kind(other).row_rank < row_rank and _are_same_part(file, other) for other in others)

    return [file for file in files if not is_copy(file)]


def _stem_and_rank(file: DataFile[AnyPath]) -> tuple[object, tuple[int, str]]:
    """Return a key that copies of one text in several formats share, and a rank: the copy of lowest rank is read."""
    kind = _kind(file)
    key = (file.path.parent, stem_of(file.path).lower(), kind.format if kind.is_code else "")
    return key, (kind.rank, kind.compression or "")


def _kind(file: DataFile[AnyPath]) -> FileKind:
    assert file.kind is not None, "only named files have no kind"
    return file.kind


def _are_same_part(file: DataFile[AnyPath], other: DataFile[AnyPath]) -> bool:
    """Return whether two files of one label are the same part of a data set, by their folders and prefixes."""
    assert file.split is not None and other.split is not None, "both have a label"
    folder, other_folder = file.path.parent, other.path.parent
    is_near = folder.is_relative_to(other_folder) or other_folder.is_relative_to(folder)
    prefixes = {file.split.prefix, other.split.prefix} - {""}
    return is_near and len(prefixes) < 2
