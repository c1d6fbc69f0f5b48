"""The rules by which the files to read are chosen among those found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat.data.files.file_kinds import GROUPS, Group, is_unread_document
from nanochat.data.files.selection.copies import without_copies
from nanochat.data.files.selection.data_file import AnyPath, DataFile, known_kind, with_splits
from nanochat.data.files.selection.file_choice import (
    COPY,
    DESCRIPTION,
    EMPTY,
    NO_ROWS,
    OTHER_GROUP,
    UNREAD_DOCUMENT,
    UNREAD_KIND,
    FileChoice,
)

Use = Literal["text", "rows"]
"""What files are read for: their text as documents, or their rows, such as chats."""

_READ_TOGETHER: tuple[Group, ...] = ("rows", "text", "tables")
"""Groups of files that are all read for their text, each file in its own form."""


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
        unread = {file for file in choice.used if not file.is_named and file.kind is None}
        documents = {file for file in unread if is_unread_document(file.path)}
        choice = choice.keep([file for file in choice.used if file not in documents], UNREAD_DOCUMENT)
        choice = choice.keep([file for file in choice.used if file not in unread], UNREAD_KIND)
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
