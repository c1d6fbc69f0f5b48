"""Which of the files found are data files to read, and why the others are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import Generic, TypeVar

from nanochat.data.files.readers import DATA_SUFFIXES
from nanochat.data.splits import SplitLabel, split_of_file

AnyPath = TypeVar("AnyPath", bound=PurePath)

HIDDEN = "hidden"
EMPTY = "empty"
_SHOWN_NAMES = 3
UNREAD_KIND = f"not {', '.join(DATA_SUFFIXES)}"


@dataclass(frozen=True)
class DataFile(Generic[AnyPath]):
    """A file of a source."""

    path: AnyPath
    name: PurePath
    """The path below the folder that contains everything. This folder's own name is not a split."""
    size: int
    is_named: bool = False
    """Whether the recipe names the file itself, not a folder or a pattern."""

    @cached_property
    def split(self) -> SplitLabel | None:
        """The split that the name tells, or None."""
        return split_of_file(self.name)

    @property
    def suffix(self) -> str:
        """The file name's suffix in lower case."""
        return self.path.suffix.lower()


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
        choice = FileChoice(tuple(sorted(files, key=lambda file: file.path)), tuple(left_out))
        choice = choice.keep([file for file in choice.used if _is_readable(file)], UNREAD_KIND)
        choice = choice.keep([file for file in choice.used if file.size > 0], EMPTY)
        choice = choice.keep(_without_copies(choice.used), "the same text in another format is read")
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


def list_reasons(left_out: Iterable[tuple[PurePath, str]]) -> str:
    """Return the names of files left out, the first ones of each reason: `a.md, b.md and 7 more (not .txt)`."""
    names: dict[str, list[str]] = {}
    for path, reason in left_out:
        names.setdefault(reason, []).append(path.name)
    parts = []
    for reason, files in names.items():
        more = f" and {len(files) - _SHOWN_NAMES:,} more" if len(files) > _SHOWN_NAMES else ""
        parts.append(f"{', '.join(files[:_SHOWN_NAMES])}{more} ({reason})")
    return "; ".join(parts)


def lower_suffix(name: str) -> str:
    """Return a file name or a pattern with its suffix in lower case."""
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}{dot}{suffix.lower()}" if dot else name


def _is_readable(file: DataFile[AnyPath]) -> bool:
    return file.is_named or file.suffix in DATA_SUFFIXES


def _without_copies(files: Sequence[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
    """Return the files without those that hold the text of another file in a format that is read less well.

    A copy has the stem of the other file in the same folder, such as `a.txt` beside `a.jsonl`. Or it has the same split
    in the same folder or one that contains it, such as `x-train.txt` beside `data/train-00000-of-00004.parquet`.
    """
    stems: dict[object, int] = {}
    splits: dict[object, list[tuple[int, DataFile[AnyPath]]]] = {}
    for file in files:
        if not file.is_named:
            rank = DATA_SUFFIXES.index(file.suffix)
            key = (file.path.parent, file.path.stem.lower())
            stems[key] = min(rank, stems.get(key, rank))
            if file.split is not None:
                splits.setdefault(file.split.label, []).append((rank, file))
    # One file of each format, prefix and folder is enough to compare with.
    for label, entries in splits.items():
        splits[label] = list({(rank, file.split, file.path.parent): (rank, file) for rank, file in entries}.values())

    def is_copy(file: DataFile[AnyPath]) -> bool:
        if file.is_named:
            return False
        rank = DATA_SUFFIXES.index(file.suffix)
        if stems[file.path.parent, file.path.stem.lower()] < rank:
            return True
        others = splits[file.split.label] if file.split is not None else []
        return any(other_rank < rank and _tell_the_same(file, other) for other_rank, other in others)

    return [file for file in files if not is_copy(file)]


def _tell_the_same(file: DataFile[AnyPath], other: DataFile[AnyPath]) -> bool:
    """Return whether two files of one label are the same part of a data set, by their folders and prefixes."""
    assert file.split is not None and other.split is not None, "both have a label"
    folder, other_folder = file.path.parent, other.path.parent
    is_near = folder.is_relative_to(other_folder) or other_folder.is_relative_to(folder)
    prefixes = {file.split.prefix, other.split.prefix} - {""}
    return is_near and len(prefixes) < 2
