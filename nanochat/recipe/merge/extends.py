"""Reads a recipe and the files it extends, and writes them over one another.

`extends` may name only files inside the recipe folder: the nearest folder called `recipes` at or above the recipe
that was named on the command line, else that recipe's own folder. Paths there are relative to the file that writes
them; absolute paths, and links that lead outside, are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.recipe.merge.tree import merge
from nanochat.recipe.schema.suggestions import closest
from nanochat.recipe.source.diagnostics import Diagnostic, Origin, Text
from nanochat.recipe.source.yaml_reader import MAX_BYTES, Entry, Node, Refused, read_yaml

MAX_EXTENDS_DEPTH = 10
MAX_FILES = 50
EXTENDS = "extends"


@dataclass(frozen=True)
class Layered:
    """The merged tree (`extends` taken out) and its files, bases first."""

    node: Node
    files: tuple[Path, ...]
    diagnostics: tuple[Diagnostic, ...]
    is_complete: bool
    """Whether all files could be read; else what is missing may be in the rest."""


def read_layers(path: Path) -> Layered:
    """Return the recipe at `path` over what it extends.

    Raises `Refused` where the recipe itself cannot be opened, `Unreadable` where it is no map.
    """
    text = read_text(path, shown=str(path))
    files = _Files(_recipe_folder(path))
    node = files.load(text, path.resolve(), ())
    if node is None:
        raise Unreadable(files.diagnostics)
    return Layered(node, tuple(files.loaded), tuple(files.diagnostics), files.is_complete)


class Unreadable(Exception):  # noqa: N818 -- never leaves the room; carries the findings
    """The recipe itself has no tree."""

    def __init__(self, diagnostics: list[Diagnostic]) -> None:
        self.diagnostics = diagnostics
        super().__init__(f"{len(diagnostics)} findings")


def read_text(path: Path, *, shown: str, asked_at: Origin | None = None) -> Text:
    """Return the text of a recipe file. Raises `Refused`, located at `asked_at` where another file names it."""
    try:
        if not path.is_file():
            raise Refused(_missing(path, shown, asked_at))
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        message = f"cannot read `{shown}`: {error.strerror}"
        raise Refused(Diagnostic("file-unreadable", message, asked_at)) from None
    folder = path.parent
    if len(content) > MAX_BYTES:
        message = f"`{shown}` is larger than {MAX_BYTES // 1024} KiB, too large for a recipe"
        raise Refused(Diagnostic("too-large", message, asked_at))
    try:
        return Text(shown, content.decode("utf-8-sig"), folder)
    except UnicodeDecodeError as error:
        text = Text(shown, content.decode("utf-8-sig", errors="replace"), folder)
        before = Text(shown, content[: error.start].decode("utf-8-sig"), folder).lines
        origin = Origin(text, len(before), len(before[-1]) + 1)
        message = f"the byte 0x{content[error.start]:02x} is not UTF-8"
        raise Refused(Diagnostic("yaml-syntax", message, origin, "save the file as UTF-8")) from None


class _Files:
    """The files read so far, each once."""

    def __init__(self, folder: Path) -> None:
        self.diagnostics: list[Diagnostic] = []
        self.loaded: dict[Path, Node | None] = {}
        self.is_complete = True
        self._folder = folder

    def load(self, text: Text, real_path: Path, above: tuple[Path, ...]) -> Node | None:
        """Return the file's tree over its bases, or None where it has none."""
        reading = read_yaml(text)
        self.diagnostics += reading.diagnostics
        node = reading.node
        if node is not None and not isinstance(node.value, dict):
            found = "nothing" if node.value is None else "a list" if isinstance(node.value, tuple) else "a value"
            message = f"a recipe is a map of fields, here is {found}"
            self.diagnostics.append(Diagnostic("not-a-map", message, node.origin, "begin with `nanochat: 1`"))
            node = None
        if node is None or not isinstance(node.value, dict):
            self.is_complete = False
            self.loaded[real_path] = None
            return None
        own = Node({name: entry for name, entry in node.value.items() if name != EXTENDS}, node.origin)
        merged: Node | None = None
        for base in self._bases(node.value.get(EXTENDS), text, (*above, real_path)):
            merged = base if merged is None else merge(merged, base)
        result = own if merged is None else merge(merged, own)
        self.loaded[real_path] = result
        return result

    def _bases(self, entry: Entry | None, text: Text, above: tuple[Path, ...]) -> Iterator[Node]:
        named = _named_files(entry)
        if entry is not None and len(named) > MAX_FILES:
            message = f"`extends` names {len(named):,} files; at most {MAX_FILES} are taken"
            self.diagnostics.append(Diagnostic("too-deep", message, entry.node.origin))
            self.is_complete = False
            return
        for item in named:
            try:
                base = self._base(item, text, above)
            except Refused as refused:
                self.diagnostics.append(refused.diagnostic)
                self.is_complete = False
                continue
            if base is not None:
                yield base

    def _base(self, item: Node, text: Text, above: tuple[Path, ...]) -> Node | None:
        if not isinstance(item.value, str) or not item.value:
            raise Refused(Diagnostic("wrong-type", "`extends` takes a path, or a list of paths", item.origin))
        path, shown = self._inside(item.value, item.origin, text)
        if path in above:
            chain = " -> ".join(each.name for each in (*above[above.index(path) :], path))
            raise Refused(Diagnostic("extends-cycle", f"`extends` runs in a circle: {chain}", item.origin))
        if path in self.loaded:
            return self.loaded[path]
        if len(above) >= MAX_EXTENDS_DEPTH or len(self.loaded) >= MAX_FILES:
            message = f"`extends` goes deeper than {MAX_EXTENDS_DEPTH} or takes more than {MAX_FILES} files"
            raise Refused(Diagnostic("too-deep", message, item.origin))
        return self.load(read_text(path, shown=shown, asked_at=item.origin), path, above)

    def _inside(self, written: str, origin: Origin, text: Text) -> tuple[Path, str]:
        """Return the real path of a base file and its name for messages."""
        if Path(written).is_absolute() or written.startswith("~"):
            help_ = "write the path relative to this file"
            raise Refused(Diagnostic("extends-outside", f"`{written}` is not a relative path", origin, help_))
        try:
            path = (text.folder / written).resolve()
        except (OSError, RuntimeError):
            raise Refused(Diagnostic("extends-missing", f"`{written}` cannot be followed", origin)) from None
        if not path.is_relative_to(self._folder):
            message = f"`{written}` leads out of the recipe folder `{self._folder.name}`"
            help_ = "recipes may extend only files inside the folder `recipes`, or beside themselves"
            raise Refused(Diagnostic("extends-outside", message, origin, help_))
        return path, os.path.normpath(Path(text.name).parent / written)


def _named_files(entry: Entry | None) -> tuple[Node, ...]:
    if entry is None or entry.node.value is None:
        return ()
    return entry.node.value if isinstance(entry.node.value, tuple) else (entry.node,)


def _recipe_folder(path: Path) -> Path:
    folder = path.resolve().parent
    return next((each for each in (folder, *folder.parents) if each.name == "recipes"), folder)


def _missing(path: Path, shown: str, asked_at: Origin | None) -> Diagnostic:
    code = "file-missing" if asked_at is None else "extends-missing"
    if path.is_dir():
        return Diagnostic(code, f"`{shown}` is a folder, not a recipe", asked_at)
    if path.exists():
        return Diagnostic(code, f"`{shown}` is not an ordinary file", asked_at)
    beside = [each.name for each in sorted(path.parent.glob("*.y*ml"))] if path.parent.is_dir() else []
    if asked_at is not None:
        beside = [name for name in beside if name != Path(asked_at.text.name).name]
    likely = closest(path.name, beside)
    help_ = f"did you mean `{os.path.normpath(Path(shown).parent / likely)}`?" if likely else ""
    return Diagnostic(code, f"there is no file `{shown}`", asked_at, help_)
