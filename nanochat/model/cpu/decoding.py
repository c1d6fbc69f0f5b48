"""One token of every row through the whole model in NumPy: the same function as `GPT.hidden` and `GPT.logits`.

A token is little work, and an operation of MLX costs ten times as much before it computes anything as one of NumPy. The
weights, keys and values are MLX's arrays, read and written in place. Float32 only.

Shapes: B rows, H query heads, G key/value heads, S positions in a buffer, D head size, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from nanochat.model.config import SMEAR_CHANNELS, SOFTCAP, GPTConfig
from nanochat.model.cpu.training.layers import sigmoid
from nanochat.model.gpt import GPT, Embedding
from nanochat.model.layers import CausalSelfAttention
from nanochat.model.rope_tables import Floats, numpy_angles

Ints = npt.NDArray[np.int32]


class _Step(NamedTuple):
    """The properties of a step that all layers need."""

    tokens: Ints
    """(B,)."""
    positions: Ints
    """(B,)."""
    cosines: Floats
    """(B, 1, D / 2), those of the positions."""
    sines: Floats


def applies(model: GPT) -> bool:
    """Return whether activations and weights are float32."""
    return bool(model.compute_dtype == mx.float32 == model.lm_head.weight.dtype)


def next_logits(
    model: GPT,
    tokens: mx.array,
    newest: mx.array,
    positions: mx.array,
    buffers: Sequence[tuple[mx.array, mx.array]],
    *,
    vocab_size: int,
) -> mx.array:
    """Return the logits (B, vocab_size) of what follows, after adding the tokens to the buffers in place.

    Args:
        model: float32.
        tokens: (B,) int32.
        newest: (B,) int32, the token before each, -1 if there is none.
        positions: (B,) int32, below the context length.
        buffers: each layer's keys and values, (B, G, S, D); position p is at index p % S.
        vocab_size: how many logits are needed.
    """
    config, variant = model.config, model.config.variant
    step = _begin(config, np.array(tokens), np.array(positions))
    x0 = _embed(model, step.tokens, np.array(newest))
    x: Floats = x0
    if variant.has_residual_lambdas:
        factors = list(zip(_shared(model.resid_lambdas), _shared(model.x0_lambdas), strict=True))
    after_middle = None
    for layer, block in enumerate(model.transformer.h):
        if variant.has_residual_lambdas:
            x = factors[layer][0] * x + factors[layer][1] * x0
        x = x + _attention(model, layer, _norm(x, variant.norm_eps), step, buffers[layer])
        hidden = _norm(x, variant.norm_eps) @ _shared(block.mlp.c_fc.weight).T
        np.maximum(hidden, 0, out=hidden)
        np.square(hidden, out=hidden)
        x = np.add(x, hidden @ _shared(block.mlp.c_proj.weight).T)
        if variant.has_backout and layer == config.backout_layer:
            after_middle = x
    if after_middle is not None:
        x = x - _shared(model.backout_lambda) * after_middle
    logits = _norm(x, variant.norm_eps) @ _shared(model.lm_head.weight)[:vocab_size].T
    logits *= 1 / SOFTCAP
    np.tanh(logits, out=logits)
    logits *= SOFTCAP
    return mx.array(logits)


def _begin(config: GPTConfig, tokens: Ints, positions: Ints) -> _Step:
    cosines, sines = numpy_angles(config.sequence_len, config.head_dim, config.variant.rope_base)
    return _Step(tokens, positions, cosines[positions][:, None], sines[positions][:, None])


def _embed(model: GPT, tokens: Ints, newest: Ints) -> Floats:
    """Return x0, (B, C)."""
    variant, table = model.config.variant, _shared(model.transformer.wte.weight)
    embedded = _norm(table[tokens], variant.norm_eps)
    if not variant.has_smear:
        return embedded
    gate = sigmoid(embedded[:, :SMEAR_CHANNELS] @ _shared(model.smear_gate.weight).T)
    gate *= _shared(model.smear_lambda) * (newest >= 0)[:, None]
    smeared: Floats = embedded + gate * _norm(table[np.maximum(newest, 0)], variant.norm_eps)
    return smeared


def _attention(model: GPT, layer: int, x: Floats, step: _Step, buffers: tuple[mx.array, mx.array]) -> Floats:
    """Return the output of attention (B, C) from the normed residual stream (B, C)."""
    config, attn = model.config, model.transformer.h[layer].attn
    heads, groups, size = config.n_head, config.n_kv_head, config.head_dim
    rows = len(x)
    both = np.concatenate([x @ _shared(attn.c_q.weight).T, x @ _shared(attn.c_k.weight).T], axis=1)
    both = _rotate_and_norm(config, both.reshape(rows, heads + groups, size), step)
    queries = both[:, :heads].reshape(rows, groups, heads // groups, size) * np.float32(size**-0.5)
    values = (x @ _shared(attn.c_v.weight).T).reshape(rows, groups, size)
    embedding = model.value_embeds[layer]
    if isinstance(embedding, Embedding):
        own = _shared(embedding.weight)[step.tokens].reshape(values.shape)
        values += _gate(config, attn, x) * own
    kept_keys, kept_values = (_shared(part) for part in buffers)
    every, slots = np.arange(rows), step.positions % kept_keys.shape[2]
    kept_keys[every, :, slots], kept_values[every, :, slots] = both[:, heads:], values
    mixed = _attend(queries, kept_keys, kept_values, np.minimum(step.positions + 1, kept_keys.shape[2]))
    return mixed.reshape(rows, -1) @ _shared(attn.c_proj.weight).T


def _rotate_and_norm(config: GPTConfig, x: Floats, step: _Step) -> Floats:
    """Return queries and keys (B, H + G, D), rotated, normed and scaled; the norm is the same after the rotation."""
    half, variant = config.head_dim // 2, config.variant
    low, high = x[..., :half], x[..., half:]
    rotated = np.empty_like(x)
    np.add(low * step.cosines, high * step.sines, out=rotated[..., :half])
    np.subtract(high * step.cosines, low * step.sines, out=rotated[..., half:])
    return _norm(rotated, variant.norm_eps, variant.qk_scale)


def _gate(config: GPTConfig, attn: CausalSelfAttention, x: Floats) -> Floats:
    """Return the factor of the value embeddings, (B, G, 1)."""
    variant = config.variant
    logits = x[:, : variant.gate_channels] @ _shared(attn.ve_gate.weight).T
    return sigmoid(logits)[..., None] * np.float32(variant.gate_scale)


def _attend(queries: Floats, keys: Floats, values: Floats, counts: Ints) -> Floats:
    """Return attention (B, G, H / G, D) of scaled queries over the first `counts` (B,) positions of each row.

    Queries and keys are normed, so scores are bounded and their exponentials need no maximum.
    """
    most = int(counts.max())
    weights: Floats = queries @ keys[:, :, :most].swapaxes(-1, -2)
    np.exp(weights, out=weights)
    if int(counts.min()) < most:
        np.multiply(weights, (np.arange(most) < counts[:, None])[:, None, None], out=weights)
    mixed: Floats = weights @ values[:, :, :most]
    mixed /= weights.sum(axis=-1, keepdims=True)
    return mixed


def _norm(x: Floats, eps: float, factor: float = 1.0) -> Floats:
    """Return factor * x / sqrt(mean(x^2) + eps) over the last axis."""
    mean = np.vecdot(x, x) * np.float32(1 / x.shape[-1])
    scale = np.float32(factor) / np.sqrt(mean + np.float32(eps))
    normed: Floats = x * scale[..., None]
    return normed


def _shared(x: mx.array) -> Floats:
    """Return an MLX array as a NumPy array of the same memory."""
    return np.array(x, copy=False)
