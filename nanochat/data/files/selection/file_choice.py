"""The files of a source that are read, and those that are left out, each with the reason.

Not here: the rules that choose them (`file_selection`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

from nanochat.data.files.selection.data_file import AnyPath, DataFile
from nanochat.plurals import list_names

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
"""Beginnings of the reasons for leaving out files whose text or rows the user may want."""


@dataclass(frozen=True)
class FileChoice(Generic[AnyPath]):
    """The files to read, in order, and the files left out. Together they are all files found."""

    used: tuple[DataFile[AnyPath], ...]
    left_out: tuple[tuple[AnyPath, str], ...]
    """Path and reason. A hidden folder counts as one file."""
    notes: tuple[str, ...] = field(default=())

    @property
    def missed(self) -> list[tuple[AnyPath, str]]:
        """The files left out that the user may miss, because they hold text or rows."""
        return [(path, reason) for path, reason in self.left_out if reason.startswith(_MISSED)]

    @property
    def paths(self) -> tuple[AnyPath, ...]:
        """The paths of the files to read."""
        return tuple(file.path for file in self.used)

    @property
    def found(self) -> int:
        """The number of files found."""
        return len(self.used) + len(self.left_out)

    def keep(self, used: Iterable[DataFile[AnyPath]], reason: str) -> FileChoice[AnyPath]:
        """Return the choice with only the files in `used`; the others are left out for `reason`."""
        kept = set(used)
        others = tuple((file.path, reason) for file in self.used if file not in kept)
        return FileChoice(tuple(file for file in self.used if file in kept), self.left_out + others, self.notes)

    def with_note(self, note: str | None) -> FileChoice[AnyPath]:
        """Return the choice with another note on its files, unless the note is empty."""
        return replace(self, notes=(*self.notes, note)) if note else self


def list_reasons(left_out: Iterable[tuple[AnyPath, str]], used: Iterable[AnyPath] = ()) -> str:
    """Return the names of files left out, the first ones of each reason: `a.md, b.md and 7 more (not .txt)`."""
    reasons: dict[str, list[AnyPath]] = {}
    for path, reason in left_out:
        reasons.setdefault(reason, []).append(path)
    beside = [*itertools.chain(*reasons.values()), *used]
    return "; ".join(f"{list_names(distinct_names(paths, beside))} ({reason})" for reason, paths in reasons.items())


def distinct_names(paths: Sequence[AnyPath], beside: Iterable[AnyPath] = ()) -> list[str]:
    """Return the names of files, with their folders if others, those in `beside` included, have the same name."""
    same_name: dict[str, set[str]] = {path.name: set() for path in paths}
    for path in itertools.chain(paths, beside):
        if path.name in same_name:
            same_name[path.name].add(str(path))
    common = {name: os.path.commonpath(same) for name, same in same_name.items() if len(same) > 1}
    return [str(path.relative_to(common[path.name])) if path.name in common else path.name for path in paths]
