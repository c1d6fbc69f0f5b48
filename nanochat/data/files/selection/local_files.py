"""Finds the files that paths, folders and patterns of a recipe name.

Linked folders are followed, and every real file is found once. Below a folder, hidden files and folders are left out,
and so is what runs write: training on the report of an earlier run would change the data with every run.
Not here: which of the files found are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nanochat.data.files.file_kinds import READABLE, contains_suffix, kind_of
from nanochat.data.files.selection.data_file import DataFile, split_of_file
from nanochat.data.files.selection.file_choice import HIDDEN, RESULTS
from nanochat.data.files.selection.missing_paths import hint_on_missing_file, hint_on_missing_folder
from nanochat.data.files.selection.path_patterns import children_of, has_magic, is_match, literal_path
from nanochat.errors import PreflightError

_HELD_OUT_RANKS = {"validation": 1, "dev": 1, "test": 2}
_RECURSIVE = "**"
_RESULT_NAMES = {"mlartifacts", "mlruns", "mlflow.db"}
"""What MLflow writes into the working directory if nobody names another place."""


def find_files(
    patterns: Sequence[str], *, base: Path | None = None
) -> tuple[list[DataFile[Path]], list[tuple[Path, str]]]:
    """Return the files that paths, folders and patterns name, in no fixed order, and what was left out, with reasons.

    A pattern that is also the name of a file or folder means that file or folder. Results of runs, such as all of the
    base folder `base`, are left out unless they are named themselves.

    Raises:
        PreflightError: a path or pattern names nothing.
    """
    finder = _Finder(base, has_several_roots=len(patterns) > 1)
    for pattern in patterns:
        finder.add(pattern)
    left_out = {path: why for path, why in finder.left_out.items() if os.path.realpath(path) not in finder.files}
    return list(finder.files.values()), list(left_out.items())


class _Finder:
    """The files found so far, by their real paths."""

    def __init__(self, base: Path | None, *, has_several_roots: bool) -> None:
        self._base = Path(os.path.realpath(base)) if base is not None else None
        self.files: dict[str, DataFile[Path]] = {}
        self.left_out: dict[Path, str] = {}
        self._folders: set[str] = set()
        self._has_several_roots = has_several_roots
        self._hits = 0
        """Data files, and folders that were searched before, which patterns led to."""

    def add(self, pattern: str) -> None:
        path, before = literal_path(pattern), self._hits
        if os.path.isdir(path):  # noqa: PTH112 -- Path.is_dir raises for a name that is too long
            self._add_folder(path, self._root(path))
            problem = f"the folder holds no file that can be read; use {READABLE}"
        elif os.path.isfile(path):  # noqa: PTH113
            self._add_file(path, path.parent, is_named=True)
            problem = ""
        elif has_magic(pattern):
            self._add_matches(pattern)
            problem = f"no file matches the pattern{hint_on_missing_folder(path)}"
        elif os.path.lexists(path):
            problem = _why_no_file(path)
        else:
            problem = f"no such file{hint_on_missing_file(path)}"
        if self._hits == before:
            raise PreflightError(f"{path}: {problem}")

    def _root(self, folder: Path) -> Path:
        """Return the folder to which paths are relative when `split_of_file` looks for a split in their names.

        It is the given folder. If the recipe gives several, it is the parent, so that a folder `train` is a split.
        """
        return folder.parent if self._has_several_roots else folder

    def _add_matches(self, pattern: str) -> None:
        parts = Path(pattern).parts
        fixed = next(i for i, part in enumerate(parts) if has_magic(part))
        root = literal_path(str(Path(*parts[:fixed])))
        for path in self._matches(root, parts[fixed:]):
            if path.is_dir():
                self._add_folder(path, self._root(root))
            else:
                self._add_file(path, self._root(root), has_chosen_kind=contains_suffix(parts[-1], path.name))

    def _add_folder(self, folder: Path, root: Path) -> None:
        """Add the files below a folder: those in real folders first, so that links to them do not count."""
        links = [folder]
        while links:
            pending, links = links, []
            for path in sorted(pending):
                if path.is_dir():
                    links += self._visit(path, root)
                else:
                    self._add_file(path, root)

    def _visit(self, top: Path, root: Path) -> list[Path]:
        """Add the files below a folder that no link leads to, and return the links."""
        links, pending = [], [top]
        while pending:
            folder = pending.pop()
            if (real := os.path.realpath(folder)) in self._folders:
                self._hits += 1
                self._add_names(folder, Path(real), root)
                continue
            self._folders.add(real)
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                self.left_out[folder] = f"cannot be read: {error.strerror}"
                continue
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith("."):
                    self.left_out[path] = HIDDEN
                elif self._is_result(path):
                    self.left_out[path] = RESULTS
                elif entry.is_symlink():
                    links.append(path)
                elif entry.is_dir():
                    pending.append(path)
                else:
                    self._add_file(path, root)
        return links

    def _add_names(self, link: Path, real: Path, root: Path) -> None:
        """Add the names that files found before have below a link to their folder, unless the link is inside it."""
        if not link.is_symlink() or Path(os.path.realpath(link.parent)).is_relative_to(real):
            return
        for key, file in self.files.items():
            if Path(key).is_relative_to(real):
                path = link / Path(key).relative_to(real)
                self.files[key] = _join(file, replace(file, path=path, name=path.relative_to(root)))

    def _add_file(self, path: Path, root: Path, *, is_named: bool = False, has_chosen_kind: bool = False) -> None:
        if not path.is_file():
            self.left_out[path] = _why_no_file(path)
            return
        self._hits += is_named or kind_of(path) is not None
        real = os.path.realpath(path)
        name = _name_below(root, path, Path(real))
        file = DataFile(path, name, path.stat().st_size, is_named, has_chosen_kind)
        known = self.files.get(real)
        self.files[real] = file if known is None else _join(known, file)

    def _matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        """Yield the files and folders that a pattern matches, as `glob` does; suffixes match in any case."""
        if not parts:
            yield folder
            return
        part, rest = parts[0], parts[1:]
        if part == _RECURSIVE:
            for inner in self._folders_below(folder) if rest else (folder,):
                yield from self._matches(inner, rest)
            return
        for path in children_of(folder):
            is_hidden = path.name.startswith(".") and not part.startswith(".")
            is_left_out = is_hidden or (path.name != part and self._is_result(path))
            if not is_left_out and is_match(path.name, part) and (not rest or path.is_dir()):
                yield from self._matches(path, rest)

    def _folders_below(self, top: Path) -> Iterator[Path]:
        """Yield a folder and all visible folders below it, each real folder once."""
        seen: set[str] = set()
        pending = [top]
        while pending:
            folder = pending.pop(0)
            real = os.path.realpath(folder)
            if real not in seen:
                seen.add(real)
                yield folder
                inner = [path for path in children_of(folder) if path.is_dir() and not path.name.startswith(".")]
                pending += [path for path in inner if not self._is_result(path)]

    def _is_result(self, path: Path) -> bool:
        """Return whether a file or folder is the base folder, or what MLflow writes."""
        if self._base is not None and path.name == self._base.name:
            return Path(os.path.realpath(path)) == self._base
        return path.name in _RESULT_NAMES


def _why_no_file(path: Path) -> str:
    return "a broken link" if path.is_symlink() else "not an ordinary file"


def _join(known: DataFile[Path], other: DataFile[Path]) -> DataFile[Path]:
    """Return one file for two names of it: a name that holds it out decides its split, a test before a validation."""

    def rank(file: DataFile[Path]) -> tuple[bool, bool, bool]:
        return file.is_named, file.has_chosen_kind, file.kind is not None

    def held_out(file: DataFile[Path]) -> int:
        return _HELD_OUT_RANKS.get(file.split.split, 0) if file.split is not None else 0

    best = other if rank(other) > rank(known) else known
    decisive = max(best, known, other, key=held_out)
    return replace(best, name=decisive.name)


def _name_below(root: Path, path: Path, real: Path) -> Path:
    """Return the name of a file below `root`; if it contains no split, the name of the file that a link leads to."""
    name, real_root = path.relative_to(root), Path(os.path.realpath(root))
    if split_of_file(name) is not None:
        return name
    return real.relative_to(real_root) if real.is_relative_to(real_root) else name.with_name(real.name)
