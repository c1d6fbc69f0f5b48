"""The interpreter's own library source as documents: text that every Python installation carries.

Left out: tests, installed packages, and files that the build generates. Long modules are cut at line ends; all pieces
of a module are on the same side of the split, which hangs on the module's name alone.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nanochat.data.chunking import chunk_text
from nanochat.data.splits import is_held_out
from nanochat.errors import PreflightError

MAX_DOCUMENT_CHARS = 16_000
VALIDATION_FRAC = 0.02

_LEFT_OUT_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled", "lib-dynload"}
)
_GENERATED_PREFIXES = ("_sysconfigdata", "config-", "sitecustomize", "usercustomize")
_TABLE_FOLDER = "encodings"
_FEWEST_MODULES = 100


@dataclass(frozen=True)
class CorpusFacts:
    """What the corpus of this interpreter is, for the record of a run."""

    python_version: str
    modules: int
    size_bytes: int
    digest: str


@dataclass(frozen=True)
class _Module:
    name: str
    content: bytes


def describe() -> CorpusFacts:
    """Return the interpreter's version and the number, size and digest of its library's modules.

    Raises:
        PreflightError: this interpreter comes without its library's source.
    """
    hashed = hashlib.sha256()
    count = size = 0
    for module in _modules():
        hashed.update(f"{module.name}\0{len(module.content)}\0".encode())
        hashed.update(module.content)
        count += 1
        size += len(module.content)
    return CorpusFacts(platform.python_version(), count, size, hashed.hexdigest())


def documents(
    split: Literal["train", "validation"],
    *,
    max_document_chars: int | None = None,
    held_out_frac: float | None = None,
    max_modules: int | None = None,
) -> list[str]:
    """Return the documents of one side in a fixed order that mixes the modules.

    `max_modules` limits the modules to train on, to the first by name; those held out stay the same.

    Raises:
        PreflightError: this interpreter comes without its library's source.
    """
    limit = max_document_chars or MAX_DOCUMENT_CHARS
    frac = VALIDATION_FRAC if held_out_frac is None else held_out_frac
    found: list[tuple[bytes, str]] = []
    is_validation = split == "validation"
    modules = [module for module in _modules() if _is_validation(module.name, frac) == is_validation]
    for module in modules if is_validation else modules[:max_modules]:
        for i, piece in enumerate(chunk_text(module.content.decode(), limit)):
            found.append((hashlib.sha256(f"{module.name}:{i}".encode()).digest(), piece))
    return [piece for _, piece in sorted(found)]


def _is_validation(name: str, frac: float) -> bool:
    # The prefix makes the default share of modules about that share of bytes as well: modules differ widely in size.
    return not name.startswith(f"{_TABLE_FOLDER}/") and is_held_out(f"python-stdlib/{name}", frac)


def _modules() -> list[_Module]:
    root = sysconfig.get_paths()["stdlib"]
    modules = [_Module(name, content) for name, content in sorted(_read(root, "")) if _is_text(content)]
    if len(modules) < _FEWEST_MODULES:
        raise PreflightError(
            f"`builtin: python-stdlib`: only {len(modules)} library modules are readable as source in {root}; "
            "use a Python installed with its library's source files"
        )
    return modules


def _read(folder: str, prefix: str) -> Iterator[tuple[str, bytes]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in _LEFT_OUT_FOLDERS or entry.name.startswith(_GENERATED_PREFIXES):
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
