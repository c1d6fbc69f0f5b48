"""The weights of an exported model: names, padding and quantization."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from nanochat.checkpoint.foreign.torch_import import PER_TOKEN
from nanochat.errors import PreflightError
from nanochat.export.model_config import Format, needs_code
from nanochat.model.gpt import GPT

_VALUE_EMBEDDING = re.compile(r"value_embeds\.(\d+)\.weight")
_TRANSFORMERS_NAMES = {
    "transformer.wte.": "model.embed_tokens.",
    "transformer.h.": "model.layers.",
    ".attn.c_q.": ".self_attn.q_proj.",
    ".attn.c_k.": ".self_attn.k_proj.",
    ".attn.c_v.": ".self_attn.v_proj.",
    ".attn.c_proj.": ".self_attn.o_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
"""The parts of names in transformers' own model of the type `nanochat`."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How matrices and tables are rounded: `group_size` numbers share a scale and an offset."""

    bits: int
    group_size: int


def library_weights(model: GPT, form: Format) -> dict[str, mx.array]:
    """Return name -> array as mlx-lm or transformers has them, without the rows that pad the vocabulary."""
    has_code, vocab = needs_code(model.config, form), model.config.vocab_size
    return {
        _name(name, form, has_code=has_code): array[:vocab] if name.startswith(PER_TOKEN) else array
        for name, array in model.named_parameters().items()
    }


def quantized(named: Mapping[str, mx.array], quantization: Quantization) -> dict[str, mx.array]:
    """Return the weights with matrices and tables quantized, in the names of MLX's quantized layers.

    Those whose rows cannot be divided into groups stay as they are, as in mlx-lm.

    Raises:
        PreflightError: none can be divided.
    """
    result: dict[str, mx.array] = {}
    for name, array in named.items():
        if array.ndim < 2 or array.shape[-1] % quantization.group_size:
            result[name] = array
            continue
        layer = name.removesuffix(".weight")
        parts = mx.quantize(array, group_size=quantization.group_size, bits=quantization.bits)
        result |= dict(zip((name, f"{layer}.scales", f"{layer}.biases"), parts, strict=True))
    if len(result) == len(named):
        raise PreflightError(
            f"no matrix of this model has rows that groups of {quantization.group_size} divide; "
            "use a smaller `group_size`: 32 or 64"
        )
    return result


def _name(ours: str, form: Format, *, has_code: bool) -> str:
    """Return the name of a weight in the library's own model, or in the one whose code is in the folder."""
    if has_code:
        return _VALUE_EMBEDDING.sub(r"transformer.h.\1.attn.value_embed.weight", ours)
    for part, theirs in _TRANSFORMERS_NAMES.items() if form == "hf" else ():
        ours = ours.replace(part, theirs)
    return ours
