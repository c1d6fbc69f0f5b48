"""Reads the weights of a model from a safetensors file that any program may have written, or that is damaged.

The header is checked before anything is allocated: MLX believes what a header says about lengths, and allocates it.
Not here: which names and shapes a model has (`config`).
"""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from nanochat.errors import PreflightError
from nanochat.model.config import MAX_SIZE, GPTConfig
from nanochat.plurals import several
from nanochat.storage.given_json import parse_object

_REMEDY = "restore it from a copy, or use a different model"
_MAX_HEADER_BYTES = 100_000_000
"""The longest header that safetensors allows."""
_MAX_DIMENSIONS = 4
"""More than any weight has."""
_LENGTH_BYTES = 8
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""The dtypes that weights may have, as safetensors names them. All become float32."""
_COUNT_BYTES = {"I32": 4}


@dataclass(frozen=True)
class _Entry:
    """Where a tensor of the file is, in bytes after the header."""

    name: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_weights(path: Path, config: GPTConfig) -> dict[str, mx.array]:
    """Return name -> float32 array of every parameter of a model.

    Raises:
        PreflightError: the file is damaged, its names or shapes are not those of `config`, or a value is not finite.
    """
    if misfit := config.find_misfit(_read_shapes(path)):
        raise PreflightError(f"{path} does not fit the configuration: {misfit}; {_REMEDY}")
    return read_safetensors(path)


def read_safetensors(path: Path, *, with_counts: bool = False) -> dict[str, mx.array]:
    """Return name -> float32 array of every tensor in a file. `with_counts` also allows int32 arrays, which stay.

    Raises:
        PreflightError: the file is damaged, a tensor is not floating point, or a value is not finite.
    """
    _read_shapes(path, with_counts=with_counts)
    try:
        loaded = mx.load(str(path))
        assert isinstance(loaded, dict), "a safetensors file is a dictionary"
        tensors = {name: x if x.dtype == mx.int32 else x.astype(mx.float32) for name, x in loaded.items()}
        mx.eval(tensors)
    except RuntimeError as error:  # MLX raises no more specific class for an unreadable file
        raise PreflightError(f"{path} cannot be read: {error}; {_REMEDY}") from error
    require_finite(path, tensors)
    return tensors


def require_finite(path: Path, tensors: dict[str, mx.array]) -> None:
    """Raise a PreflightError that names the first tensor with a value that is not a finite number."""
    for name, tensor in tensors.items():
        if not mx.isfinite(tensor).all().item():
            raise PreflightError(f"{path}: weight `{name}` has values that are not finite numbers; {_REMEDY}")


def _read_shapes(path: Path, *, with_counts: bool = False) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor, from the header alone.

    Raises:
        PreflightError: the file is missing or no file, its header is damaged, or a tensor is not floating point.
    """
    if not path.exists():
        raise PreflightError(f"{path.parent} holds no model: {path.name} is missing")
    if not path.is_file():
        raise PreflightError(f"{path} is not a file; {_REMEDY}")
    try:
        content, data_bytes = _read_header(path)
        if any(name.endswith((".scales", ".biases")) for name in content):
            raise ValueError("it is quantized: use the model that it was made from")
        dtypes = _ITEM_BYTES | (_COUNT_BYTES if with_counts else {})
        entries = [_entry(name, described, dtypes) for name, described in content.items() if name != "__metadata__"]
        _check_places(entries, data_bytes)
    except (OSError, ValueError) as error:
        raise PreflightError(f"{path} cannot be read as safetensors: {error}; {_REMEDY}") from None
    return {entry.name: entry.shape for entry in entries}


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header, and how many bytes follow it. A ValueError says why there is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            raise ValueError(
                f"a header of {several(length, 'byte')} does not fit into a file of {several(size, 'byte')}"
            )
        content = parse_object(file.read(length))
    metadata = content.get("__metadata__") or {}  # MLX writes null
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise ValueError("its `__metadata__` is not a table of texts")
    return content, size - _LENGTH_BYTES - length


def _entry(name: str, described: Any, item_bytes: dict[str, int]) -> _Entry:
    shown = f"`{reprlib.repr(name)[1:-1]}`"
    if not isinstance(described, dict) or described.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(dtype, str) or dtype not in item_bytes:
        raise ValueError(f"{shown} has dtype {reprlib.repr(dtype)}, but weights must be one of {', '.join(item_bytes)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(x) is not int or x < 0 for x in numbers):
            raise ValueError(f"{shown} has a shape or offsets that are not whole numbers")
    if len(shape) > _MAX_DIMENSIONS or max(shape, default=0) > MAX_SIZE:
        raise ValueError(f"{shown} has the shape {reprlib.repr(shape)}, which is too large")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * item_bytes[dtype]:
        raise ValueError(
            f"{shown} of shape {tuple(shape)} and dtype {dtype} does not fit its offsets {reprlib.repr(offsets)}"
        )
    return _Entry(name, tuple(shape), offsets[0], offsets[1])


def _check_places(entries: list[_Entry], data_bytes: int) -> None:
    """Raise a ValueError unless the tensors lie one after another, from the header to the end of the file."""
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            raise ValueError(f"`{entry.name}` starts at byte {entry.start:,} of the data instead of {position:,}")
        position = entry.end
    if position != data_bytes:
        raise ValueError(f"its tensors have {several(position, 'byte')}, but the data after the header {data_bytes:,}")
