"""Import weights from PyTorch nanochat. Names are the same; dtypes, prefixes and padding differ.

PyTorch nanochat saves a state dictionary as `model_STEP.pt`, which is readable here if torch is installed; its weights
may also be safetensors. `torch.compile` puts `_orig_mod.` before every name, matrices may be bfloat16, the vocabulary
may be padded to a different multiple, and the buffers `cos` and `sin` are not weights. Its `load_state_dict` accepts
our weights unchanged. Not here: nanochat's tokenizer and optimizer state.
"""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import reprlib
from pathlib import Path
from typing import Any

import mlx.core as mx

from nanochat.errors import PreflightError
from nanochat.model.config import GPTConfig
from nanochat.model.weights.safetensors_file import read_safetensors, require_finite
from nanochat.plurals import several

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
    named = {name: tensor for name, tensor in named.items() if name not in _BUFFERS}
    if config.n_layer > len(named):  # listing the names of that many layers could take all memory
        raise PreflightError(f"the model has {config.n_layer:,} layers, but only {several(len(named), 'weight')}")
    expected = config.parameter_shapes()
    missing, unknown = sorted(expected.keys() - named.keys()), sorted(named.keys() - expected.keys())
    if missing or unknown:
        raise PreflightError(
            f"these are not the weights of {config}: missing {reprlib.repr(missing)}, unknown {reprlib.repr(unknown)}"
        )
    return {
        name: _import_tensor(name, named[name].astype(mx.float32), shape, config) for name, shape in expected.items()
    }


def _import_tensor(name: str, tensor: mx.array, shape: tuple[int, ...], config: GPTConfig) -> mx.array:
    original_shape = tuple(tensor.shape)
    if name.startswith(PER_TOKEN) and original_shape[1:] == shape[1:] and original_shape[0] >= config.vocab_size:
        padding = max(0, shape[0] - original_shape[0])
        tensor = mx.pad(tensor[: shape[0]], [(0, padding), (0, 0)])
    if tuple(tensor.shape) != shape:
        raise PreflightError(f"weight `{name}` has shape {original_shape}, but the model needs {shape}")
    return tensor


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
