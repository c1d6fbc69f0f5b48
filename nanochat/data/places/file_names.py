"""Checks the names of files that a hub, an object store, an archive or an address gives, before they are used.

A name is used as a path below a folder, and is written into lists and messages.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

_DRIVE = re.compile("[A-Za-z]:")
_CONTROL_CATEGORIES = ("Cc", "Zl", "Zp")
"""Unicode's categories of control characters, and of separators of lines and paragraphs."""
_SHOWN_CHARS = 200


def why_refused(name: str) -> str | None:
    """Return why a name must not be used as a path below a folder, as text that follows the name; None if it may be."""
    if any(unicodedata.category(char) in _CONTROL_CATEGORIES for char in name):
        return "its name has line breaks or other control characters"
    if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts or _DRIVE.match(name):
        return "its name leaves the folder"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return "its name cannot be the name of a file"
    return None


def find_conflict(names: Iterable[str]) -> str | None:
    """Return a name that is given twice, or that is a file as well as the folder of another file; None if all fit."""
    paths = [PurePosixPath(name) for name in names]
    folders = {folder for path in paths for folder in path.parents}
    seen: set[PurePosixPath] = set()
    for path in paths:
        if path in seen or path in folders:
            return str(path)
        seen.add(path)
    return None


def show(name: str) -> str:
    """Return a name between backticks for messages, shortened, with escapes for what is not printable."""
    shown = name if len(name) <= _SHOWN_CHARS else f"{name[:_SHOWN_CHARS]}..."
    return f"`{shown if shown.isprintable() else ascii(shown)[1:-1]}`"
