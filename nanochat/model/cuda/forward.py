"""The forward pass composed of the kernels: the same function as `GPT.residual_stream`'s last value.

Tokens of all rows stand in one axis, N = B * T. With a cache nothing is differentiated. Not here: activation
checkpointing (the plain form's).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from nanochat.model.attention import attention
from nanochat.model.config import GPTConfig
from nanochat.model.cuda.embedding import lookup_of, lookup_without_gradient, rows_of
from nanochat.model.cuda.launch import runs_kernels
from nanochat.model.cuda.linear import linear
from nanochat.model.cuda.qkv import GATE_PADDING, Heads, split_heads
from nanochat.model.cuda.residual import add_norm, mix_norm
from nanochat.model.cuda.squared_relu import squared_relu
from nanochat.model.layers import Attention, Embedding, Linear, norm, scaled, starts_among

if TYPE_CHECKING:
    from nanochat.model.gpt import GPT, Cache

_HEAD_SIZES = (16, 32, 64, 128, 256)
_MAX_WIDTH = 2048


def applies(config: GPTConfig) -> bool:
    """Return whether the kernels run here and take this shape."""
    fits = config.head_dim in _HEAD_SIZES and config.n_embd % 8 == 0 and config.n_embd <= _MAX_WIDTH
    return fits and runs_kernels()


def hidden(model: GPT, idx: mx.array, cache: Cache | None = None) -> mx.array:
    """Return the final normed residual stream (B, T, C) of tokens (B, T), in the compute dtype."""
    config, variant, dtype = model.config, model.config.variant, model.compute_dtype
    batch, time = idx.shape
    offset = 0 if cache is None else cache.offset
    lookup = lookup_of(idx) if cache is None else lookup_without_gradient(idx)
    first = norm(rows_of(_cast(model.transformer.wte, dtype), lookup), variant.norm_eps)
    if variant.has_smear:
        first = model.smeared(first.reshape(batch, time, -1), cache).reshape(first.shape)
    heads = _heads(config, time)
    residual_factors = mx.split(model.resid_lambdas, config.n_layer)
    first_factors = mx.split(model.x0_lambdas, config.n_layer)
    x, y, kept = first, None, None
    for layer, block in enumerate(model.transformer.h):
        factors = (residual_factors[layer], first_factors[layer])
        mixed, normed, first = mix_norm(x, y, first, factors, variant.norm_eps)
        value_rows = model.value_embeds[layer]
        table = _cast(value_rows, dtype) if isinstance(value_rows, Embedding) else None
        projected = linear(normed, model.joined[layer] if model.joined else joined_projection(block.attn, dtype))
        split = split_heads(heads, projected, table, lookup, offset=offset)
        queries, keys, values = (_by_head(part, batch, config.head_dim) for part in split)
        if cache is not None:
            keys, values = cache.layers[layer].update(keys, values)
        starts = None if cache is None else starts_among(cache.starts, keys, newest=offset + time)
        attended = attention(queries, keys, values, window=config.windows[layer], starts=starts)
        flat = attended.swapaxes(1, 2).reshape(batch * time, -1)
        x, normed = add_norm(mixed, linear(flat, _cast(block.attn.c_proj, dtype)), variant.norm_eps)
        y = linear(squared_relu(linear(normed, _cast(block.mlp.c_fc, dtype))), _cast(block.mlp.c_proj, dtype))
        if variant.has_backout and layer == config.backout_layer:
            kept = x + y
    assert y is not None, "a model has at least one layer"
    if kept is not None:
        y = y - scaled(kept, model.backout_lambda)
    if cache is not None:
        cache.advance(time)
    return add_norm(x, y, variant.norm_eps)[1].reshape(batch, time, -1)


def _heads(config: GPTConfig, time: int) -> Heads:
    return Heads(
        queries=config.n_head,
        keys=config.n_kv_head,
        size=config.head_dim,
        positions=time,
        eps=config.variant.norm_eps,
        qk_scale=config.variant.qk_scale,
        gate_scale=config.variant.gate_scale,
        rope_base=config.variant.rope_base,
    )


def joined_projection(attn: Attention, dtype: mx.Dtype) -> mx.array:
    """Return the weights of queries, keys, values and, where there is one, the gate as one matrix."""
    parts = [_cast(part, dtype) for part in (attn.c_q, attn.c_k, attn.c_v)]
    if "ve_gate" in attn:
        gate = _cast(attn.ve_gate, dtype)
        parts.append(mx.pad(gate, [(0, GATE_PADDING - gate.shape[0]), (0, parts[0].shape[1] - gate.shape[1])]))
    return mx.concatenate(parts)


def _by_head(x: mx.array, batch: int, size: int) -> mx.array:
    """Return (B, H, T, D) from (N, H * D), a view."""
    return x.reshape(batch, x.shape[0] // batch, -1, size).swapaxes(1, 2)


def _cast(module: Linear | Embedding, dtype: mx.Dtype) -> mx.array:
    return module.weight.astype(dtype)
