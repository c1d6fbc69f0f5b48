"""Explains why a path of a recipe may not exist: a misspelt name, or something that is no path."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from nanochat.data.files.file_kinds import kind_of
from nanochat.data.files.selection.path_patterns import children_of, has_magic

_MAX_NAME_BYTES = 255


def hint_on_missing_file(path: Path) -> str:
    """Return a hint for a path that does not exist, as the end of a sentence."""
    text = str(path)
    if any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in path.parts):
        return f"; a name in it is longer than {_MAX_NAME_BYTES} bytes"
    if (match := re.search("/hf:/+(.*)", text)) is not None:
        return f"; write a data set of the Hugging Face hub as `uri: hf://{match[1]}`"
    if (match := re.search("/(https?):/+(.*)", text)) is not None:
        return f"; `{match[1]}://{match[2]}` is an address: write it as `uri`, with the `sha256` of its content"
    if (match := re.search(r"/(\$\w+|\$\{\w+\}|%\w+%)", text)) is not None:
        return f"; environment variables such as `{match[1]}` are not replaced: write the path, or start it with `~/`"
    owner = path.parent
    if kind_of(path) is None and not owner.exists() and owner.parent.is_dir():
        name = f"{owner.name}/{path.name}"
        return f"; if `{name}` is a data set of the Hugging Face hub, write `uri: hf://datasets/{name}`"
    return hint_on_missing_folder(path) or _similar_name(path)


def hint_on_missing_folder(path: Path) -> str:
    """Return, as the end of a sentence, the first folder of a path or pattern that does not exist, if there is one."""
    for folder in reversed(path.parents):
        if not has_magic(str(folder)) and not os.path.exists(folder):  # noqa: PTH110 -- Path.exists raises for long names
            return f"; there is no folder {folder}{_similar_name(folder)}"
    return ""


def _similar_name(path: Path) -> str:
    """Return, as the end of a sentence, the name beside a path that does not exist which the user may have meant."""
    names = [sibling.name for sibling in children_of(path.parent) if not sibling.name.startswith(".")]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
