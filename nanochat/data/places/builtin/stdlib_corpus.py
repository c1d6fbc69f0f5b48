"""The source code of Python's standard library as documents: text that every Python installation has.

Tests, installed packages and generated files are left out. A long module gives several documents, split at line ends.
A hash of the module's name decides which split all of them belong to.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nanochat.data.files.held_out_documents import chunk_text
from nanochat.data.splits import is_held_out
from nanochat.errors import PreflightError

MAX_DOCUMENT_CHARS = 16_000
VALIDATION_FRAC = 0.02

_EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled", "lib-dynload"}
)
_GENERATED_PREFIXES = ("_sysconfigdata", "config-", "sitecustomize", "usercustomize")
_TABLE_FOLDER = "encodings"
_MIN_MODULES = 100


@dataclass(frozen=True)
class _Module:
    name: str
    content: bytes


def corpus_digest() -> str:
    """Return the sha256 (hex) of the names and contents of the library's modules.

    Raises:
        PreflightError: this Python was installed without its library's source.
    """
    hashed = hashlib.sha256()
    for module in _modules():
        hashed.update(f"{module.name}\0{len(module.content)}\0".encode())
        hashed.update(module.content)
    return hashed.hexdigest()


def documents(
    split: Literal["train", "validation"],
    *,
    max_document_chars: int | None = None,
    held_out_frac: float | None = None,
    max_modules: int | None = None,
) -> list[str]:
    """Return the documents of a split, in a fixed order that mixes the modules.

    `max_modules` keeps the first training modules by name. It does not change the validation documents.

    Raises:
        PreflightError: this Python was installed without its library's source.
    """
    limit = max_document_chars or MAX_DOCUMENT_CHARS
    frac = VALIDATION_FRAC if held_out_frac is None else held_out_frac
    keyed: list[tuple[bytes, str]] = []
    is_validation = split == "validation"
    modules = [module for module in _modules() if _is_validation(module.name, frac) == is_validation]
    for module in modules if is_validation else modules[:max_modules]:
        for i, piece in enumerate(chunk_text(module.content.decode(), limit)):
            keyed.append((hashlib.sha256(f"{module.name}:{i}".encode()).digest(), piece))
    return [piece for _, piece in sorted(keyed)]


def _is_validation(name: str, frac: float) -> bool:
    # With this prefix, the default fraction of modules is about the same fraction of bytes, though sizes differ widely.
    return not name.startswith(f"{_TABLE_FOLDER}/") and is_held_out(f"python-stdlib/{name}", frac)


def _modules() -> list[_Module]:
    root = sysconfig.get_paths()["stdlib"]
    modules = [_Module(name, content) for name, content in sorted(_read(root, "")) if _is_text(content)]
    if len(modules) < _MIN_MODULES:
        raise PreflightError(
            f"`builtin: python-stdlib`: only {len(modules)} library modules are readable as source in {root}; "
            "use a Python installed with its library's source files"
        )
    return modules


def _read(folder: str, prefix: str) -> Iterator[tuple[str, bytes]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in _EXCLUDED_FOLDERS or entry.name.startswith(_GENERATED_PREFIXES):
                continue
            if entry.is_dir():
                yield from _read(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.endswith(".py"):
                with open(entry.path, "rb") as file:  # noqa: PTH123 -- pathlib doubles the time of 700 small files
                    yield prefix + entry.name, file.read()


def _is_text(content: bytes) -> bool:
    try:
        return bool(content.decode().strip())
    except UnicodeDecodeError:
        return False
