"""The paths and patterns of a recipe: which characters are wildcards, and what a pattern matches in one folder."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from pathlib import Path

from nanochat.data.files.file_kinds import lower_suffix

_ESCAPED = re.compile(r"\[([*?[])\]")
"""A character that `glob.escape` protected."""


def literal_path(pattern: str) -> Path:
    """Return the path that a pattern means if none of its characters is a wildcard."""
    return Path(pattern if os.path.lexists(pattern) else _ESCAPED.sub(r"\1", pattern))


def has_magic(pattern: str) -> bool:
    """Return whether a path contains a wildcard."""
    return glob.has_magic(_ESCAPED.sub("", pattern))


def is_match(name: str, pattern: str) -> bool:
    """Return whether a pattern matches a name, whose suffix may be in upper or lower case."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(lower_suffix(name), lower_suffix(pattern))


def children_of(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing if it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
