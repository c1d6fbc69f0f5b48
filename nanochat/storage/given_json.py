"""Reads JSON objects that other programs wrote or that are damaged, strictly and within limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from nanochat.errors import PreflightError

_MAX_FILE_BYTES = 1 << 20
"""More than any configuration of a model has."""


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a small file.

    Raises:
        PreflightError: the file is missing, no file, or not a JSON object with different keys.
    """
    try:
        if not path.is_file():
            problem = "is not a file" if path.exists() else "is missing"
            raise PreflightError(f"{path} {problem}; restore it from a copy")
        if (size := path.stat().st_size) > _MAX_FILE_BYTES:
            raise PreflightError(f"{path} has {size:,} bytes, but a configuration has at most {_MAX_FILE_BYTES:,}")
        return parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise PreflightError(f"{path} cannot be read: {error}; restore it from a copy") from None


def parse_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in some bytes.

    Raises:
        ValueError: they are not JSON in UTF-8, not an object, or nested too deeply; a key occurs twice, or a number is
            not finite.
    """
    try:
        content = json.loads(raw.decode(), object_pairs_hook=_with_different_keys, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def _with_different_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
