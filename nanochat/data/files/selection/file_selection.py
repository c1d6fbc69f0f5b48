"""Chooses the data files to read among the files found, and gives the reasons for leaving out the others."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal

from nanochat.data.files.file_kinds import GROUPS, Group, is_unread_document, kind_of
from nanochat.data.files.selection.copies import without_copies
from nanochat.data.files.selection.data_file import AnyPath, DataFile, known_kind, with_splits
from nanochat.plurals import list_names

Use = Literal["text", "rows"]
"""What files are read for: their texts as documents, each file in its own form, or their rows, such as chats."""

HIDDEN = "hidden"
RESULTS = "results of runs"
EMPTY = "empty"
NO_USABLE_ROW = "no usable row"
UNREAD_KIND = "neither text nor rows, by its suffix"
UNREAD_DOCUMENT = "a document of another program: save it as text or as a page"
NO_ROWS = "holds no rows"
NO_COLUMN = "without the key or column"
OTHER_GROUP = "beside files of a kind that is read first; name it or its suffix to read it"
COPY = "taken for the same text as a file of another format, by its name; name it or its suffix to read it"
DESCRIPTION = "describes the other files, by its name"
_MISSED = (UNREAD_DOCUMENT, OTHER_GROUP, COPY, NO_ROWS, NO_COLUMN)
"""Beginnings of the reasons for which a file is left out that a reader could have used, perhaps in another form."""
_READ_TOGETHER: tuple[Group, ...] = ("rows", "text", "tables")


@dataclass(frozen=True)
class FileChoice(Generic[AnyPath]):
    """The files to read, in order, and the files left out. Together they are all files found."""

    used: tuple[DataFile[AnyPath], ...]
    left_out: tuple[tuple[AnyPath, str], ...]
    """Path and reason. A hidden folder counts as one file."""
    notes: tuple[str, ...] = field(default=())

    @property
    def missed(self) -> list[tuple[AnyPath, str]]:
        """The files left out that somebody may miss, because they hold text or rows."""
        return [(path, reason) for path, reason in self.left_out if reason.startswith(_MISSED)]

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
        self,
        files: Iterable[DataFile[AnyPath]],
        left_out: Iterable[tuple[AnyPath, str]] = (),
        *,
        use: Use | None = None,
        why_unusable: Callable[[DataFile[AnyPath]], str | None] = lambda file: None,
    ) -> FileChoice[AnyPath]:
        """Return the data files with content, each text in one format only, in the order of their paths.

        Without `use`, the files are a published data set: those of its first kind are read, and others only describe
        it. `why_unusable` says why a file with rows gives no document; it is asked if there are files of other kinds.
        """
        choice = FileChoice(tuple(with_splits(files)), tuple(left_out))
        unread = [file for file in choice.used if not file.is_named and file.kind is None]
        documents = {file for file in unread if is_unread_document(file.path)}
        choice = choice.keep([file for file in choice.used if file not in documents], UNREAD_DOCUMENT)
        choice = choice.keep([file for file in choice.used if file not in {*unread}], UNREAD_KIND)
        choice = choice.keep([file for file in choice.used if file.size > 0], EMPTY)
        if use == "text":
            choice = _without_unusable(choice, why_unusable)
        choice = choice.keep(_without_descriptions(choice.used, use), DESCRIPTION)
        if use == "rows":
            choice = choice.keep(_without_text(choice.used), NO_ROWS)
        together = _READ_TOGETHER if use == "text" else ()
        choice = choice.keep(_of_first_group(choice.used, together), OTHER_GROUP)
        choice = choice.keep(without_copies(choice.used), COPY)
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


def contains_suffix(pattern: str, name: str) -> bool:
    """Return whether a pattern contains the suffix of the file it matches, as `*.md` does and `notes*` does not."""
    kind = kind_of(pattern)
    return kind is not None and kind == kind_of(name)


def _without_descriptions(files: Sequence[DataFile[AnyPath]], use: Use | None) -> list[DataFile[AnyPath]]:
    """Return the files without readmes, licences and the like, if there are rows, tables or txt files beside them.

    Among other texts with markup, such as notes, they are read as one of them.
    """
    contents = [file for file in _unchosen(files) if not file.describes_others]
    has_data = any(known_kind(file).group in ("rows", "tables") or _is_txt(file) for file in contents)
    is_one_of_many = use == "text" and any(_is_markup(file) for file in contents)
    left_out = {file for file in _unchosen(files) if file.describes_others and not _is_txt(file)}
    return [file for file in files if file not in left_out or is_one_of_many or not has_data]


def _without_unusable(
    choice: FileChoice[AnyPath], why_unusable: Callable[[DataFile[AnyPath]], str | None]
) -> FileChoice[AnyPath]:
    """Return the choice without files of rows that give no document, if others beside them do."""
    contents = [file for file in _unchosen(choice.used) if not file.describes_others]
    if len({known_kind(file).group for file in contents}) < 2:
        return choice
    reasons = {file: why_unusable(file) for file in contents if known_kind(file).has_rows}
    if all(reasons.get(file) for file in contents):
        return choice.keep(_of_first_group(choice.used), OTHER_GROUP)
    for reason in sorted({reason for reason in reasons.values() if reason is not None}):
        choice = choice.keep([file for file in choice.used if reasons.get(file) != reason], reason)
    return choice


def _without_text(files: Sequence[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
    """Return the files without the texts among them, if there are rows and the recipe does not choose the texts."""
    texts = {file for file in _unchosen(files) if not known_kind(file).has_rows}
    has_rows = any(file.kind is not None and file.kind.has_rows for file in files)
    return [file for file in files if file not in texts or not has_rows]


def _of_first_group(files: Sequence[DataFile[AnyPath]], together: Sequence[Group] = ()) -> list[DataFile[AnyPath]]:
    """Return the files that the recipe chooses by name or kind, and of the others those of the first group.

    All groups of `together` count as one. A txt file is read beside rows as well.
    """
    contents = [file for file in _unchosen(files) if not file.describes_others] or _unchosen(files)
    groups = {known_kind(file).group for file in contents}
    read = groups.intersection(together) or {min(groups, key=GROUPS.index, default="text")}
    left_out = {file for file in _unchosen(files) if known_kind(file).group not in read}
    if "rows" in read:
        left_out = {file for file in left_out if not _is_txt(file)}
    return [file for file in files if file not in left_out]


def _unchosen(files: Iterable[DataFile[AnyPath]]) -> list[DataFile[AnyPath]]:
    return [file for file in files if not (file.is_named or file.has_chosen_kind)]


def _is_txt(file: DataFile[AnyPath]) -> bool:
    return known_kind(file).format == ".txt"


def _is_markup(file: DataFile[AnyPath]) -> bool:
    kind = known_kind(file)
    return kind.group == "text" and not kind.is_code and not _is_txt(file)
