"""The recipes and the JSON Schema that come with nanochat, and what a name such as `quickstart` stands for.

In a checkout they are in the folders `recipes` and `schemas` beside the package; an installed package has them inside.
This module imports little, since shell completion lists the recipes whenever the Tab key is pressed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nanochat

SCHEMA_FILE = "recipe.schema.json"
_PACKAGE = Path(nanochat.__file__).resolve().parent
_REMARK = re.compile(r"^# (\w+): (.*\n(?:#   .*\n)*)", re.MULTILINE)


@dataclass(frozen=True)
class Summary:
    """The content of the comment at the top of a shipped recipe."""

    purpose: str
    cost: str


def schema_path() -> Path:
    """Return the file with the JSON Schema of recipes."""
    return _folder("schemas") / SCHEMA_FILE


def shipped_recipes() -> Mapping[str, Path]:
    """Return the file of each recipe that comes with nanochat, by its name, in the order of names."""
    return {path.stem: path for path in sorted(_folder("recipes").glob("*.yaml"))}


def is_shipped(path: Path) -> bool:
    """Return whether a file is among the recipes that come with nanochat."""
    return path.resolve().parent == _folder("recipes")


def is_installed(path: Path) -> bool:
    """Return whether a file is inside the installed package, where nothing should be written beside it."""
    return path.resolve().is_relative_to(_PACKAGE)


def find_recipe(reference: Path, folder: Path = Path()) -> Path:
    """Return the file that a path in `folder` or a shipped recipe's name stands for. A file of this name wins."""
    path = folder / reference
    is_name = reference.name == str(reference) and not reference.suffix
    return shipped_recipes().get(reference.name, path) if is_name and not path.is_file() else path


def summarize(recipe: Path) -> Summary:
    """Return the purpose and the cost of a shipped recipe."""
    remarks = {
        key.lower(): " ".join(line.removeprefix("#").strip() for line in text.splitlines())
        for key, text in _REMARK.findall(recipe.read_text("utf-8"))
    }
    return Summary(purpose=remarks["purpose"], cost=remarks["cost"])


@cache
def _folder(name: str) -> Path:
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
