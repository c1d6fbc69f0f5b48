"""Reads the Python files that a recipe names, without running them: `my_tasks.py:MyTask`, `grade.py:score`.

Checking a recipe imports this module, so it finds mistakes in the syntax tree alone. Not here: running the code, which
the sandbox does (`python_grader`, `python_task`).
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 1 << 20
DEFAULT_FUNCTION = "grade"
"""The function of a grading program whose reference names none."""
TASK_METHODS = ("num_examples", "get_example", "evaluate")


@dataclass(frozen=True)
class PythonFile:
    """A function or a class in a file, with the whole source of the file."""

    path: str
    name: str
    source: str

    @property
    def digest(self) -> str:
        """The sha256 (hex) of the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{Path(self.path).name}:{self.name}"


class PythonFileError(Exception):
    """Says why a file that a recipe names cannot be used."""


def read_function(reference: str) -> PythonFile:
    """Return the function that `FILE.py:NAME` names, or `FILE.py` alone (`DEFAULT_FUNCTION`).

    Raises PythonFileError if the file cannot be read or parsed, or does not define the function.
    """
    file, tree = _read(reference, DEFAULT_FUNCTION)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == file.name]
    if not functions:
        others = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        raise PythonFileError(_missing(file, "function", others))
    return file


def read_class(reference: str) -> PythonFile:
    """Return the class that `FILE.py:NAME` names.

    Raises PythonFileError if the file cannot be read or parsed, or does not define the class with its `TASK_METHODS`.
    The methods of base classes are not known before the class runs, so they are not missed.
    """
    file, tree = _read(reference, "")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    chosen = next((node for node in classes if node.name == file.name), None)
    if chosen is None:
        raise PythonFileError(_missing(file, "class", [node.name for node in classes]))
    own = {node.name for node in chosen.body if isinstance(node, ast.FunctionDef)}
    missing = [name for name in TASK_METHODS if name not in own]
    if missing and not chosen.bases:
        listed = ", ".join(f"`{name}`" for name in missing)
        raise PythonFileError(f"{file.path}:{chosen.lineno}: the class `{file.name}` has no method {listed}")
    return file


def _split_reference(reference: str) -> tuple[str, str]:
    """Return the path and the name in `FILE.py:NAME`; the name is empty if there is none."""
    path, colon, name = reference.rpartition(":")
    return (path, name) if colon and path.endswith(".py") else (reference, "")


def _read(reference: str, default: str) -> tuple[PythonFile, ast.Module]:
    path, name = _split_reference(reference)
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise PythonFileError(f"{path} is larger than {MAX_FILE_BYTES // 1024} KiB")
        source = content.decode()
        return PythonFile(path, name or default, source), ast.parse(source)
    except OSError as error:
        raise PythonFileError(f"cannot read {path}: {error.strerror}") from error
    except SyntaxError as error:
        raise PythonFileError(f"{path}:{error.lineno}:{error.offset}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # bytes that are not UTF-8, NUL, deep nesting
        raise PythonFileError(f"{path} is not a Python file: {error}") from error


def _missing(file: PythonFile, kind: str, others: Sequence[str]) -> str:
    known = f"; it defines {', '.join(others)}" if others else ""
    return f"{file.path} does not define the {kind} `{file.name}`{known}"
