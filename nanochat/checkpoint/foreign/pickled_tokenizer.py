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
)


class _Encoding:
    """Takes the place of tiktoken's class, and keeps the state that the pickle gives it."""

    state: Mapping[str, Any] = {}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Knows one class."""

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
        ranks = {bytes(piece): int(rank) for piece, rank in state["mergeable_ranks"].items()}
        special = {str(name): int(i) for name, i in state["special_tokens"].items()}
        return from_tiktoken(ranks, str(state["pat_str"]), special)
    except _DAMAGED as error:
        raise PreflightError(f"{path} is not a pickled tiktoken encoding: {error!r}") from error
