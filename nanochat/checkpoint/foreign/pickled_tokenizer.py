"""Reads PyTorch nanochat's `tokenizer.pkl` without running any code in it.

The file is a pickle of a tiktoken encoding. A pickle may name any function to be called; the reader here knows a single
name, that of the encoding's class, and refuses every other one.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanochat.errors import PreflightError
from nanochat.tokenizer.byte_level_codec import from_tiktoken

_ENCODING = ("tiktoken.core", "Encoding")
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,  # a few bytes can ask for any amount
    RecursionError,
)


class _Encoding:
    """Takes the place of tiktoken's class, and keeps the state that the pickle gives it."""

    state: Mapping[str, Any] = {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """An unpickler that loads the parts of one class of tiktoken and refuses every other class."""

    def __init__(self, content: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(content))
        self._path = path

    def find_class(self, module: str, name: str) -> type:
        """Return our stand-in for tiktoken's class. Any other name raises a PreflightError."""
        if (module, name) != _ENCODING:
            raise PreflightError(f"{self._path} is not a tokenizer: it asks to run `{module}.{name}`, which is refused")
        return _Encoding


def read_pickled_tokenizer(path: Path) -> bytes:
    """Return the tokenizer.json of the encoding in a pickle.

    Raises:
        PreflightError: the file is damaged, or asks for anything but a tiktoken encoding.
    """
    try:
        encoding = _Unpickler(path.read_bytes(), path).load()
        state = dict(encoding.state)
        ranks, special, pattern = (state[name] for name in ("mergeable_ranks", "special_tokens", "pat_str"))
        _check_table("mergeable_ranks", ranks, bytes)
        _check_table("special_tokens", special, str)
        if not isinstance(pattern, str):
            raise TypeError("`pat_str` is not a text")
        return from_tiktoken(ranks, pattern, special)
    except _DAMAGED as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}".removesuffix(": ")
        raise PreflightError(f"{path} is not a pickled tiktoken encoding: {reason}") from error


def _check_table(name: str, table: object, keys: type) -> None:
    """Raise a TypeError if a table does not map keys of a type to whole numbers."""
    if not isinstance(table, dict) or any(type(key) is not keys or type(i) is not int for key, i in table.items()):
        raise TypeError(f"`{name}` does not map {keys.__name__} to whole numbers")
