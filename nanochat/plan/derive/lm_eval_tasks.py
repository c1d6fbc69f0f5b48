"""Tasks of lm-evaluation-harness: whether the library is installed and has a task, and the digest of a task in a file.

The library is never imported here, because that takes seconds.
"""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from nanochat.errors import PreflightError

PACKAGE = "lm_eval"
INSTALL = "pip install 'nanochat-run[lm-eval]'"
_MAX_PATH_CHARS = 1024
_MODULE_TAG = "!function"
"""`!function utils.process` names a function in `utils.py` beside the YAML file."""


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


def digest_task_file(path: str) -> str:
    """Return the sha256 (hex) of a YAML file, of the files that it includes, and of their modules and local data files.

    Raises a PreflightError if a file cannot be read. Nothing is run.
    """
    parts = []
    for file in sorted(_files(Path(path), set())):
        try:
            parts.append(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}")
        except OSError as error:
            raise PreflightError(f"cannot read {file}: {error.strerror}") from error
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _files(path: Path, seen: set[Path]) -> set[Path]:
    """Return the YAML file and what it names, as far as these are local files."""
    if path in seen:
        return set()
    seen.add(path)
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise PreflightError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f"{path}:{place.line + 1}:{place.column + 1}" if place is not None else str(path)
        raise PreflightError(f"{where}: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise PreflightError(f"{path}: a task must be a map with `task`, `dataset_path` and so on")
    files = {path}
    for key, value in root.value:
        if key.value == "include":
            for scalar in _scalars(value):
                files |= _files(path.parent / scalar.value, seen)
    for scalar in _scalars(root):
        if scalar.tag == _MODULE_TAG:
            files.add(path.parent / f"{scalar.value.partition('.')[0]}.py")
        else:
            files |= _named_files(path.parent, scalar.value)
    return files


def _named_files(folder: Path, text: str) -> set[Path]:
    """Return the files that a text names as a path or a pattern below a folder; none for all other texts."""
    if "://" in text or "\n" in text or len(text) > _MAX_PATH_CHARS:
        return set()
    try:
        paths = glob.glob(str(folder / text), recursive=True)  # noqa: PTH207 -- Path.glob refuses absolute patterns
        return {Path(name) for name in paths if Path(name).is_file()}
    except (OSError, ValueError):  # such as a text with NUL
        return set()


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    match node:
        case yaml.ScalarNode():
            yield node
        case yaml.SequenceNode():
            for item in node.value:
                yield from _scalars(item)
        case yaml.MappingNode():
            for _, value in node.value:
                yield from _scalars(value)
