"""Reads a model that another program saved (PyTorch nanochat, transformers, mlx-lm), in our names, shapes and dtype.

Not here: which files these are (`model_parts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from nanochat.checkpoint.config_file import config_from
from nanochat.checkpoint.foreign.model_parts import ForeignModel, read_json
from nanochat.checkpoint.foreign.torch_import import import_weights, read_tensors
from nanochat.errors import PreflightError
from nanochat.model.architectures import VARIANTS, Architecture
from nanochat.model.config import GPTConfig

TORCH_EPS = 2.0**-23
"""PyTorch's norms without an epsilon use the machine epsilon of float32."""
_TRANSFORMERS_EPS = 1e-6
_BLOCK_NAMES = {
    "self_attn.q_proj": "attn.c_q",
    "self_attn.k_proj": "attn.c_k",
    "self_attn.v_proj": "attn.c_v",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
"""Names in transformers -> ours."""


def read_model(parts: ForeignModel, *, architecture: Architecture | None) -> tuple[GPTConfig, dict[str, mx.array]]:
    """Return the configuration and the parameters of a model, float32.

    Args:
        parts: its files.
        architecture: used if the files do not name one. None recognises it by the names of the weights.

    Raises:
        PreflightError: a file cannot be read, describes a model that is not a nanochat, or the weights do not match the
            configuration.
    """
    tensors: dict[str, mx.array] = {}
    for path in parts.weights:
        tensors |= read_tensors(path)
    is_transformers = "model.embed_tokens.weight" in tensors
    tensors = {_our_name(name): tensor for name, tensor in tensors.items()}
    content = read_json(parts.config)
    if content.get("model_type") not in (None, "nanochat"):
        raise PreflightError(
            f"{parts.config} is of type {content['model_type']!r}, which only its own library reads; for a model that "
            "`nanochat-run export` wrote, import its `--format torch`"
        )
    if content.get("model_type") == "nanochat":
        config = _library_config(content, parts.config, is_transformers=is_transformers)
    else:
        config = _nanochat_config(content, parts.config, tensors, architecture)
    return config, import_weights(tensors, config)


def _our_name(name: str) -> str:
    """Return our name of a weight in transformers' model; others are as they are."""
    if name == "model.embed_tokens.weight":
        return "transformer.wte.weight"
    if not name.startswith("model.layers.") or name.count(".") < 3:
        return name
    _, _, layer, rest = name.split(".", 3)
    for theirs, ours in _BLOCK_NAMES.items():
        if rest == f"{theirs}.weight":
            return f"transformer.h.{layer}.{ours}.weight"
    return name


def _library_config(content: Mapping[str, Any], path: Path, *, is_transformers: bool) -> GPTConfig:
    """Return the configuration of a model of type `nanochat` of transformers or mlx-lm."""
    try:
        width, heads = content["hidden_size"], content["num_attention_heads"]
        if content["intermediate_size"] != 4 * width:
            raise PreflightError(f"{path}: `intermediate_size` must be 4 * `hidden_size`")
        theta = content.get("rope_theta", (content.get("rope_parameters") or {}).get("rope_theta", 10_000.0))
        if theta != VARIANTS["portable"].rope_base:
            raise PreflightError(f"{path}: `rope_theta` is {theta}, which this architecture does not have")
        eps = content.get("rms_norm_eps", _TRANSFORMERS_EPS) if is_transformers else VARIANTS["portable"].norm_eps
        values = {
            "sequence_len": content.get("max_position_embeddings", 2048),
            "vocab_size": content["vocab_size"],
            "n_layer": content["num_hidden_layers"],
            "n_head": heads,
            "n_kv_head": content.get("num_key_value_heads") or heads,
            "n_embd": width,
            "window_pattern": "L",
            "architecture": "portable",
            "norm_eps": None if eps == VARIANTS["portable"].norm_eps else eps,
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise PreflightError(f"{path} does not describe a nanochat model: {error!r}") from None
    return config_from(values, path)


def _nanochat_config(
    content: Mapping[str, Any], path: Path, tensors: Mapping[str, mx.array], architecture: Architecture | None
) -> GPTConfig:
    """Return the configuration in PyTorch nanochat's meta_STEP.json, or in a file of ours."""
    values = content.get("model_config") or content.get("model") or content
    if not isinstance(values, dict):
        raise PreflightError(f"{path} does not describe a nanochat model: its sizes are not an object")
    values = dict(values)
    chosen = values.setdefault("architecture", architecture or _recognise(tensors))
    if chosen == "portable":
        values.setdefault("norm_eps", TORCH_EPS)
        values.setdefault("window_pattern", "L")
    return config_from(values, path)


def _recognise(tensors: Mapping[str, mx.array]) -> Architecture:
    """Return the architecture whose parts the weights have."""
    if any(name.endswith("smear_gate.weight") for name in tensors):
        return "current"
    return "seed" if any(name.endswith("resid_lambdas") for name in tensors) else "portable"
