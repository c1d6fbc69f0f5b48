"""Reads a recipe and the recipes it extends, and merges them.

`extends` may only name files inside the recipe folder. That is the nearest folder called `recipes` which contains the
recipe named on the command line, or else the folder of that recipe. Paths in `extends` are relative to the file that
contains them; absolute paths, and links to files outside the recipe folder, are refused. A name such as `quickstart`
means the recipe that comes with nanochat, unless there is a file of this name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from nanochat.recipe.merge.tree import merge
from nanochat.recipe.parsing.diagnostics import Diagnostic, LocatedRecipeError, Origin, Text, refusal
from nanochat.recipe.parsing.nodes import Entry, Node
from nanochat.recipe.parsing.yaml_reader import MAX_BYTES, read_yaml
from nanochat.recipe.schema.suggestions import closest
from nanochat.recipe.shipped import find_recipe, is_shipped, shipped_recipes

MAX_EXTENDS_DEPTH = 10
MAX_FILES = 50
_DATA_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".csv", ".tsv")
_HOW_TO_NAME_DATA = "a recipe is a YAML file, which names files and folders of data under `sources`"


def read_with_bases(path: Path) -> tuple[Node, RecipeFiles]:
    """Return the recipe at `path`, merged with the recipes it extends and without `extends` itself, and its files.

    A LocatedRecipeError says why the recipe itself cannot be read. Errors in the others are in `diagnostics`.
    """
    text = _read_text(path, shown=str(path))
    files = RecipeFiles(_recipe_folder(path))
    node = files.read(text, path.resolve(), ())
    if node is None:
        raise LocatedRecipeError(files.diagnostics)
    return node, files


class RecipeFiles:
    """The files that were read, each once, by their real paths, the recipe itself last.

    `is_complete` is false if a file could not be read, so that missing fields may be in that file.
    """

    def __init__(self, folder: Path) -> None:
        self.diagnostics: list[Diagnostic] = []
        self.nodes: dict[Path, Node | None] = {}
        self.is_complete = True
        self._folder = folder

    def read(self, text: Text, real_path: Path, children: tuple[Path, ...]) -> Node | None:
        """Return the tree of a file merged with the files it extends, or None if it has no tree.

        `children` are the files that led here by `extends`, the recipe itself first.
        """
        node, diagnostics = read_yaml(text)
        self.diagnostics += diagnostics
        if node is None or not isinstance(node.value, dict):
            if node is not None:
                self.diagnostics.append(_not_a_map(node))
            self.is_complete = False
            self.nodes[real_path] = None
            return None
        entries = dict(node.value)
        extends = entries.pop("extends", None)
        merged: Node | None = None
        for base in self._bases(extends, text, (*children, real_path)):
            merged = base if merged is None else merge(merged, base)
        own = Node(entries, node.origin)
        self.nodes[real_path] = own if merged is None else merge(merged, own)
        return self.nodes[real_path]

    def _bases(self, extends: Entry | None, text: Text, children: tuple[Path, ...]) -> Iterator[Node]:
        if extends is None or extends.node.value is None:
            return
        items = extends.node.value if isinstance(extends.node.value, tuple) else (extends.node,)
        if len(items) > MAX_FILES:
            message = f"`extends` names {len(items):,} files, but at most {MAX_FILES} are allowed"
            self.diagnostics.append(Diagnostic("too-deep", message, extends.node.origin))
            self.is_complete = False
            return
        for item in items:
            try:
                base = self._base(item, text, children)
            except LocatedRecipeError as error:
                self.diagnostics += error.diagnostics
                self.is_complete = False
                continue
            if base is not None:
                yield base

    def _base(self, item: Node, text: Text, children: tuple[Path, ...]) -> Node | None:
        if not isinstance(item.value, str) or not item.value:
            raise refusal("wrong-type", "`extends` must be a path or a list of paths", item.origin)
        path = self._resolve(item.value, item.origin, text)
        if path in children:
            cycle = " -> ".join(file.name for file in (*children[children.index(path) :], path))
            raise refusal("extends-cycle", f"`extends` forms a cycle: {cycle}", item.origin)
        if path in self.nodes:
            return self.nodes[path]
        if len(children) >= MAX_EXTENDS_DEPTH or len(self.nodes) >= MAX_FILES:
            limits = f"{MAX_EXTENDS_DEPTH} levels deep or reads more than {MAX_FILES} files"
            raise refusal("too-deep", f"`extends` is nested more than {limits}", item.origin)
        is_outside = not path.is_relative_to(self._folder)  # a shipped recipe
        shown = str(path) if is_outside else os.path.normpath(Path(text.name).parent / item.value)
        return self.read(_read_text(path, shown=shown, named_at=item.origin), path, children)

    def _resolve(self, written: str, origin: Origin, text: Text) -> Path:
        """Return the real path of a file that `extends` names."""
        if Path(written).is_absolute() or written.startswith("~"):
            help_ = "write the path relative to this file"
            raise refusal("extends-outside", f"`{written}` is not a relative path", origin, help_)
        try:
            path = find_recipe(Path(written), text.folder).resolve()
        except (OSError, RuntimeError):
            raise refusal("extends-missing", f"the path `{written}` cannot be resolved", origin) from None
        if not path.is_relative_to(self._folder) and not is_shipped(path):
            message = f"`{written}` is outside the recipe folder `{self._folder.name}`"
            help_ = "a recipe can only extend files in its own folder, or anywhere inside a folder called `recipes`"
            raise refusal("extends-outside", message, origin, help_)
        return path


def _read_text(path: Path, *, shown: str, named_at: Origin | None = None) -> Text:
    """Return the text of a recipe file, which messages call `shown`.

    `named_at` is the place where another file names this one; errors point there.
    """
    try:
        if not path.is_file():
            raise LocatedRecipeError([_missing(path, shown, named_at)])
        if path.suffix.lower() in _DATA_SUFFIXES:
            raise refusal("not-a-recipe", f"`{shown}` is a file of data, not a recipe", named_at, _HOW_TO_NAME_DATA)
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise refusal("file-unreadable", f"cannot read `{shown}`: {error.strerror}", named_at) from None
    if len(content) > MAX_BYTES:
        message = f"`{shown}` is larger than {MAX_BYTES // 1024} KiB, which is too large for a recipe"
        raise refusal("too-large", message, named_at)
    try:
        return Text(shown, content.decode("utf-8-sig"), path.parent)
    except UnicodeDecodeError as error:
        text = Text(shown, content.decode("utf-8-sig", errors="replace"), path.parent)
        lines_before = Text(shown, content[: error.start].decode("utf-8-sig"), path.parent).lines
        origin = Origin(text, len(lines_before), len(lines_before[-1]) + 1)
        message = f"the byte 0x{content[error.start]:02x} is not valid UTF-8"
        raise refusal("yaml-syntax", message, origin, "save the file as UTF-8") from None


def _recipe_folder(path: Path) -> Path:
    folder = path.resolve().parent
    return next((parent for parent in (folder, *folder.parents) if parent.name == "recipes"), folder)


def _not_a_map(node: Node) -> Diagnostic:
    kind = "empty" if node.value is None else "a list" if isinstance(node.value, tuple) else "a single value"
    message = f"a recipe must be a map of fields, but this is {kind}"
    return Diagnostic("not-a-map", message, node.origin, "start the file with `nanochat: 1`")


def _missing(path: Path, shown: str, named_at: Origin | None) -> Diagnostic:
    code = "file-missing" if named_at is None else "extends-missing"
    if path.is_dir():
        help_ = _HOW_TO_NAME_DATA if named_at is None else ""
        return Diagnostic(code, f"`{shown}` is a folder, not a recipe", named_at, help_)
    if path.exists():
        return Diagnostic(code, f"`{shown}` is not an ordinary file", named_at)
    beside = {file.stem: file.name for file in path.parent.glob("*.y*ml")} if path.parent.is_dir() else {}
    if named_at is not None:
        beside.pop(Path(named_at.text.name).stem, None)
    names = {name: name for name in shipped_recipes()}
    names |= {stem: os.path.normpath(Path(shown).parent / name) for stem, name in beside.items()}
    likely = closest(path.stem, names)
    what = "file" if path.suffix else "file and no recipe"
    return Diagnostic(
        code, f"there is no {what} `{shown}`", named_at, f"did you mean `{names[likely]}`?" if likely else ""
    )
