"""Reads the weights of a model from a safetensors file that any program may have written, or that is damaged.

The library of the format checks the header first: MLX believes what a header says about lengths, and allocates it.
Not here: which names and shapes a model has (`config`).
"""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from nanochat.errors import PreflightError
from nanochat.model.config import MAX_SIZE, GPTConfig

_REMEDY = "restore it from a copy, or use a different model"
_SHOWN_CHARS = 500
_MAX_DIMENSIONS = 4
"""More than any weight has."""
_WEIGHT_DTYPES, _COUNT_DTYPES = ("F32", "F16", "BF16"), ("I32",)
"""The dtypes that weights and counts may have, as safetensors names them. Weights become float32."""


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
    """Return name -> shape of every tensor, from the header alone, which the library of the format checks.

    Raises:
        PreflightError: the file is missing or no file, its header is damaged, or a tensor is not floating point.
    """
    if not path.exists():
        raise PreflightError(f"{path.parent} holds no model: {path.name} is missing")
    if not path.is_file():
        raise PreflightError(f"{path} is not a file; {_REMEDY}")
    dtypes = (*_WEIGHT_DTYPES, *(_COUNT_DTYPES if with_counts else ()))
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: _checked_shape(name, file.get_slice(name), dtypes) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise PreflightError(f"{path} cannot be read as safetensors: {str(error)[:_SHOWN_CHARS]}; {_REMEDY}") from None


def _checked_shape(name: str, tensor: Any, dtypes: tuple[str, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor. A ValueError says why it cannot be a weight."""
    if name.endswith((".scales", ".biases")):
        raise ValueError("it is quantized: use the model that it was made from")
    shown = f"`{reprlib.repr(name)[1:-1]}`"
    if tensor.get_dtype() not in dtypes:
        raise ValueError(f"{shown} has dtype {tensor.get_dtype()}, but weights must be one of {', '.join(dtypes)}")
    shape = tuple(tensor.get_shape())
    if len(shape) > _MAX_DIMENSIONS or max(shape, default=0) > MAX_SIZE:
        raise ValueError(f"{shown} has the shape {reprlib.repr(shape)}, which is too large")
    return shape
