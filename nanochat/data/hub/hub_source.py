"""A data set of the Hugging Face hub as a recipe names it, and the files that this name selects."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from nanochat.data.files.file_kinds import contains_suffix, lower_suffix
from nanochat.data.files.selection.data_file import AnyPath, DataFile
from nanochat.data.places.file_names import show
from nanochat.errors import PreflightError

DEFAULT_REVISION = "main"

_PREFIX = "hf://datasets/"
_COMMIT = re.compile("[0-9a-f]{40}")
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class HubSource:
    """A hub data set as a recipe names it."""

    repository: str
    pattern: str
    revision: str

    @classmethod
    def parse(cls, uri: str, revision: str | None) -> HubSource:
        """Return the parts of `hf://datasets/OWNER/NAME`, which a folder, file or glob may follow.

        Raises:
            PreflightError: `uri` or `revision` has another form.
        """
        parts = uri.removeprefix(_PREFIX).split("/", 2)
        repository, revision = "/".join(parts[:2]), revision or DEFAULT_REVISION
        if not uri.startswith(_PREFIX) or _REPOSITORY.fullmatch(repository) is None:
            raise PreflightError(
                f"{show(uri)}: expected {_PREFIX}OWNER/NAME without a revision, optionally with a folder or glob"
            )
        if not _is_revision(revision):
            raise PreflightError(f"{show(uri)}: {show(revision)} cannot be the name of a branch, tag or commit")
        return cls(repository, parts[2].rstrip("/") if len(parts) > 2 else "", revision)

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return is_commit(self.revision)

    def describe(self) -> str:
        """Return the data set, files and revision, for messages."""
        pattern = f"/{self.pattern}" if self.pattern else ""
        return f"{_PREFIX}{self.repository}{pattern} (revision {self.revision})"

    def matches(self, name: str) -> bool:
        """Return whether a file of the repository belongs to the source. Its suffix is compared without regard to case.

        A folder matches all files below it that are not hidden, and an empty pattern matches the whole repository. The
        loading script `NAME.py` of the data set does not count as data.
        """
        if name == self.pattern:
            return True
        if not self.pattern or name.startswith(f"{self.pattern}/"):
            is_hidden = any(part.startswith(".") for part in PurePosixPath(name).relative_to(self.pattern).parts)
            return not is_hidden and name != f"{PurePosixPath(self.repository).name}.py"
        return fnmatch.fnmatchcase(lower_suffix(name), lower_suffix(self.pattern))

    def file(self, name: str, path: AnyPath, size: int) -> DataFile[AnyPath]:
        """Return a file of the repository. Its split comes from its path below the fixed part of the pattern."""
        fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), PurePosixPath(self.pattern).parts))
        is_named = name == self.pattern
        root = PurePosixPath(*fixed[:-1] if is_named else fixed)
        return DataFile(
            path, PurePosixPath(name).relative_to(root), size, is_named, contains_suffix(self.pattern, name)
        )


def is_on_hub(uri: str) -> bool:
    """Return whether the `uri` of a source names a data set of the hub, not an address elsewhere."""
    return uri.startswith("hf://")


def is_commit(revision: str) -> bool:
    """Return whether a revision has the form of a commit."""
    return _COMMIT.fullmatch(revision) is not None


def _is_revision(name: str) -> bool:
    """Return whether git could have a branch, tag or commit of this name."""
    return (
        name.isprintable() and not name.startswith(("/", ".")) and not any(part in name for part in ("..", "//", " "))
    )
