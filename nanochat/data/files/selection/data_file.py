"""A file of a source: its kind, and the split to which it belongs by its name."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Generic, TypeVar

from nanochat.data.files.file_kinds import FileKind, kind_of, stem_of
from nanochat.data.splits import SplitLabel, split_of_names, splits_of_twins

AnyPath = TypeVar("AnyPath", bound=PurePath)

_DESCRIPTIONS = ("changelog", "citation", "contributing", "copying", "licence", "license", "notice", "readme")
_FOLDERS_OF_TEXT = ("validation", "test")
"""Names that make a folder of text a split, even without a `train`. A folder `dev` may hold notes on development."""


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
    """The split that the name shows only beside the names of other files."""
    has_title: bool = False
    """Whether the name is the title of a text and not a split, judged beside the names of the other files."""

    @cached_property
    def split(self) -> SplitLabel | None:
        """The split in the name, or None."""
        return self.twin_split if self.has_title else split_of_file(self.name) or self.twin_split

    @cached_property
    def kind(self) -> FileKind | None:
        """The kind of the file's suffix, or None."""
        return kind_of(self.path)

    @property
    def describes_others(self) -> bool:
        """Whether the file is a readme, a licence or the like, by its name."""
        return stem_of(self.path).lower() in _DESCRIPTIONS


def known_kind(file: DataFile[AnyPath]) -> FileKind:
    """Return the kind of a file that must have one."""
    assert file.kind is not None, "only named files have no kind"
    return file.kind


@functools.lru_cache(maxsize=1 << 16)  # the files of a source are listed several times
def split_of_file(path: PurePath) -> SplitLabel | None:
    """Return the split in the file's name, else in the name of the nearest folder that contains one, else None.

    `path` is relative to the source's folder, because that folder's own name does not decide the split.
    """
    return split_of_names((stem_of(path), *reversed(path.parts[:-1])), is_data=_is_data(path))


def with_splits(files: Iterable[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
    """Return the files, sorted by path, with the splits that only the names of all of them show together.

    Two names that differ only in the split are twins. The name of a text is a title, such as `test.md` of a note on
    tests, unless another file or folder is the `train` that belongs to it. Programs have no twins.
    """
    in_order = sorted(files, key=lambda file: file.path)
    twins = splits_of_twins(str(file.name) for file in in_order if file.kind is not None and not file.kind.is_code)
    labels = [split_of_file(file.name) for file in in_order]
    trained = {label.part for label in labels if label is not None and label.split == "train"}
    return [
        replace(file, twin_split=twins.get(str(file.name)), has_title=_has_title(file, trained)) for file in in_order
    ]


def _has_title(file: DataFile[AnyPath], trained: set[tuple[str, str]]) -> bool:
    """Return whether a name that could mean held-out text is a title. `trained` holds the parts that have a `train`.

    A folder `test` or `validation` is a split even without a `train` beside it, but not in source code.
    """
    label = split_of_file(file.name)
    if label is None or label.split == "train" or file.kind is None or file.kind.has_rows:
        return False
    is_of_folder = label != split_of_names((stem_of(file.name),), is_data=_is_data(file.name))
    if file.kind.is_code:
        return not (is_of_folder and label.part in trained)
    is_plain_folder = is_of_folder and label == SplitLabel(label.split, label.split)
    return label.part not in trained and not (is_plain_folder and label.split in _FOLDERS_OF_TEXT)


def _is_data(path: PurePath) -> bool:
    kind = kind_of(path)
    return kind is not None and kind.is_data
