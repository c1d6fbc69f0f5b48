"""The forward pass composed of CUDA kernels: it computes the same function as `GPT.hidden`.

The tokens of all rows are one axis, N = B * T. With a cache the pass has no gradient. Not here: recomputing blocks in
the backward pass, which only the plain form does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import mlx.core as mx

from nanochat.model.config import GPTConfig
from nanochat.model.cuda.embedding import embed_norm, index_tokens, index_without_gradient
from nanochat.model.cuda.qkv import GATE_PADDING, split_qkv
from nanochat.model.cuda.residual import add_norm, mix_norm
from nanochat.model.cuda.squared_relu import squared_relu
from nanochat.model.device import runs_kernels
from nanochat.model.gpt import GPT, Embedding, scaled
from nanochat.model.layers import Attend, Cache, CausalSelfAttention, Linear, norm

_HEAD_SIZES = (16, 32, 64, 128, 256)
_MAX_WIDTH = 2048


def applies(config: GPTConfig) -> bool:
    """Return whether this device runs the kernels and they support the model's shape."""
    fits = config.head_dim in _HEAD_SIZES and config.n_embd % 8 == 0 and config.n_embd <= _MAX_WIDTH
    return fits and runs_kernels()


def hidden(
    model: GPT, idx: mx.array, cache: Cache | None = None, *, attend: Attend, fused_qkv: Sequence[mx.array] = ()
) -> mx.array:
    """Return the final normed residual stream (B, T, C) of tokens (B, T), in the compute dtype.

    `fused_qkv` holds each layer's `fuse_qkv` in the compute dtype; if it is empty, the matrices are made here.
    """
    config, variant, dtype = model.config, model.config.variant, model.compute_dtype
    batch, time = idx.shape
    offsets, end = None, time
    if cache is not None:
        offsets = mx.broadcast_to(mx.array(cache.offset, mx.int32), (batch,))
        end = cache.offset + time if isinstance(cache.offset, int) else config.sequence_len
    tokens = index_tokens(idx) if cache is None else index_without_gradient(idx)
    x0 = embed_norm(model.transformer.wte.weight, tokens, eps=variant.norm_eps, dtype=dtype)
    if variant.has_smear:
        embedded = x0.reshape(batch, time, -1)
        x0 = model.smear(embedded, model.previous(embedded, cache)).reshape(x0.shape)
    factors = _split_lambdas(model)
    x, y, after_middle = x0, None, None
    for layer, block in enumerate(model.transformer.h):
        if factors:
            mixed, normed, x0 = mix_norm(x, y, x0, factors[layer], variant.norm_eps)
        else:
            mixed, normed = (x, norm(x, variant.norm_eps)) if y is None else add_norm(x, y, variant.norm_eps)
        value_embedding = model.value_embeds[layer]
        table = value_embedding.weight if isinstance(value_embedding, Embedding) else None
        projected = linear(normed, fused_qkv[layer] if fused_qkv else fuse_qkv(block.attn, dtype))
        split = split_qkv(config, projected, table, tokens, positions=time, offsets=offsets, end=end)
        queries, keys, values = (_by_head(part, batch, config.head_dim) for part in split)
        if cache is None:
            attended = attend(queries, keys, values, window=config.windows[layer])
        else:
            attended = cache.layers[layer].attend(queries, keys, values)
        flat = attended.swapaxes(1, 2).reshape(batch * time, -1)
        x, normed = add_norm(mixed, linear(flat, _cast(block.attn.c_proj, dtype)), variant.norm_eps)
        y = linear(squared_relu(linear(normed, _cast(block.mlp.c_fc, dtype))), _cast(block.mlp.c_proj, dtype))
        if variant.has_backout and layer == config.backout_layer:
            after_middle = x + y
    assert y is not None, "a model has at least one layer"
    if after_middle is not None:
        y = y - scaled(after_middle, model.backout_lambda)
    if cache is not None:
        cache.advance(idx)
    return add_norm(x, y, variant.norm_eps)[1].reshape(batch, time, -1)


def _split_lambdas(model: GPT) -> list[tuple[mx.array, mx.array]]:
    """Return each layer's factors on the residual stream and on the embeddings; empty if the model has none."""
    if not model.config.variant.has_residual_lambdas:
        return []
    return list(zip(_each(model.resid_lambdas), _each(model.x0_lambdas), strict=True))


def _each(x: mx.array) -> tuple[mx.array, ...]:
    """Return the values of x (N,), each (1,).

    MLX would add up N padded gradients, with a kernel for each N that takes ten seconds to compile.
    """
    return cast("tuple[mx.array, ...]", _slices(x))


@mx.custom_function
def _slices(x: mx.array) -> tuple[mx.array, ...]:
    return tuple(x[i : i + 1] for i in range(x.size))


@_slices.vjp
def _joined(_: mx.array, cotangents: tuple[mx.array, ...], __: tuple[mx.array, ...]) -> mx.array:
    return mx.concatenate(list(cotangents))


def fuse_qkv(attn: CausalSelfAttention, dtype: mx.Dtype) -> mx.array:
    """Return the weights of queries, keys, values and, if the layer has one, the value gate as one matrix."""
    parts = [_cast(part, dtype) for part in (attn.c_q, attn.c_k, attn.c_v)]
    if "ve_gate" in attn:
        gate = _cast(attn.ve_gate, dtype)
        parts.append(mx.pad(gate, [(0, GATE_PADDING - gate.shape[0]), (0, parts[0].shape[1] - gate.shape[1])]))
    return mx.concatenate(parts)


def linear(x: mx.array, weight: mx.array) -> mx.array:
    """Return x W^T, (N, out) from (N, in) and (out, in), with a weight gradient that is laid out like the weight."""
    return cast("mx.array", _linear(x, weight))


@mx.custom_function
def _linear(x: mx.array, weight: mx.array) -> mx.array:
    return x @ weight.T


@_linear.vjp
def _backward(primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array) -> tuple[mx.array, mx.array]:
    x, weight = primals
    d_weight = cotangent.T @ x
    # MLX would postpone weight gradients to the end and keep all the activations that they need until then.
    (d_x,) = mx.depends([cotangent @ weight], [d_weight])
    return d_x, d_weight


def _by_head(x: mx.array, batch: int, size: int) -> mx.array:
    """Return (B, H, T, D) from (N, H * D), a view."""
    return x.reshape(batch, x.shape[0] // batch, -1, size).swapaxes(1, 2)


def _cast(module: Linear | Embedding, dtype: mx.Dtype) -> mx.array:
    return module.weight.astype(dtype)
