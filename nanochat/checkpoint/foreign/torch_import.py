"""Imports weights from PyTorch nanochat. Names are the same; dtypes, prefixes and padding differ.

PyTorch nanochat saves a state dictionary as `model_STEP.pt`, which is readable here if torch is installed; its weights
may also be safetensors. `torch.compile` puts `_orig_mod.` before every name, matrices may be bfloat16, the vocabulary
may be padded to a different multiple, and the buffers `cos` and `sin` are not weights. Its `load_state_dict` accepts
our weights unchanged. Not here: nanochat's tokenizer and optimizer state.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import mlx.core as mx

from nanochat.checkpoint.safetensors_file import read_safetensors, require_finite
from nanochat.errors import PreflightError
from nanochat.model.config import GPTConfig

_COMPILED_PREFIX = "_orig_mod."
_BUFFERS = ("cos", "sin")
# Exceptions that torch raises, apart from UnpicklingError, for damaged files and files that it did not write.
_UNREADABLE = (RuntimeError, LookupError, EOFError, ValueError, AttributeError, TypeError, OSError)
PER_TOKEN = ("transformer.wte.weight", "lm_head.weight", "value_embeds.")
"""How the names of weights begin that have a row for each token."""


def read_tensors(path: Path) -> dict[str, mx.array]:
    """Return the arrays in a `.safetensors` or `.pt` file, with their names in it. Reading `.pt` needs torch."""
    if not path.exists():
        raise PreflightError(f"{path}: no such file of weights")
    match path.suffix:
        case ".safetensors":
            return read_safetensors(path)
        case ".pt" | ".pth":
            return _read_pt(path)
        case other:
            raise PreflightError(f"{path}: weights must be .safetensors or .pt, not `{other}`")


def import_weights(tensors: dict[str, mx.array], config: GPTConfig) -> dict[str, mx.array]:
    """Return name -> float32 array, named and padded as in our models.

    Names or shapes that are not those of `config` raise a PreflightError.
    """
    named = {name.removeprefix(_COMPILED_PREFIX): tensor for name, tensor in tensors.items()}
    padded = {name: _padded(name, tensor, config) for name, tensor in named.items() if name not in _BUFFERS}
    if misfit := config.find_misfit({name: tuple(tensor.shape) for name, tensor in padded.items()}):
        raise PreflightError(misfit)
    return {name: padded[name].astype(mx.float32) for name in config.parameter_shapes()}


def _padded(name: str, tensor: mx.array, config: GPTConfig) -> mx.array:
    """Return a table of tokens with as many rows as ours; other tensors are returned as they are."""
    if not name.startswith(PER_TOKEN) or tensor.ndim != 2 or tensor.shape[0] < config.vocab_size:
        return tensor
    table = tensor[: config.padded_vocab_size]
    return mx.pad(table, [(0, config.padded_vocab_size - table.shape[0]), (0, 0)])


def _read_pt(path: Path) -> dict[str, mx.array]:
    if importlib.util.find_spec("torch") is None:
        raise PreflightError(
            f"{path}: reading .pt needs PyTorch (`pip install torch`); or save it as safetensors there"
        )
    torch = importlib.import_module("torch")
    try:
        state = torch.load(str(path), map_location="cpu", weights_only=True)
        tensors = {name: _to_mlx(name, tensor, path.stat().st_size) for name, tensor in state.items()}
    except pickle.UnpicklingError as error:  # torch's message advises loading the file without this protection
        raise PreflightError(
            f"{path} cannot be read as a dictionary of tensors: it is damaged, or holds more than tensors"
        ) from error
    except _UNREADABLE as error:
        reason = str(error).strip().split("\n")[0]
        raise PreflightError(
            f"{path} cannot be read as a dictionary of tensors: {type(error).__name__}: {reason}"
        ) from error
    require_finite(path, tensors)
    return tensors


def _to_mlx(name: object, tensor: Any, file_bytes: int) -> mx.array:
    """Return a tensor of torch as a float32 array. A TypeError or ValueError says why it cannot be a weight."""
    if not isinstance(name, str) or not tensor.is_floating_point():
        raise TypeError(f"{name!r} is not a weight of floating-point numbers")
    # Torch can repeat one number as often as a file asks for.
    if tensor.numel() * tensor.element_size() > file_bytes:
        raise ValueError(f"`{name}` of shape {tuple(tensor.shape)} is larger than the file")
    return mx.array(tensor.float().numpy())
