"""Says whether lm-evaluation-harness is installed and has a task, without importing it, which takes seconds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

PACKAGE = "lm_eval"
INSTALL = "pip install 'nanochat-run[lm-eval]'"


def harness_version() -> str | None:
    """Return the version of lm-evaluation-harness, or None if it is not installed."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def has_task(name: str) -> bool:
    """Return whether a configuration file of the installed package mentions a task, a group or a tag of this name."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        return False
    line = re.compile(
        rf"^\s*(?:-\s*(?:(?:task|group|tag):\s*)?|(?:task|group|tag):\s*)[\"']?{re.escape(name)}[\"']?\s*$",
        re.MULTILINE,
    )
    files = (file for folder in folders for file in (Path(folder) / "tasks").rglob("*.yaml"))
    return any(line.search(file.read_text(encoding="utf-8", errors="replace")) for file in files)
