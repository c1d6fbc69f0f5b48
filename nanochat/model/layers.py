"""The layers of the GPT, written out in plain MLX: norm, rotary embedding, attention, MLP, and a block of them.

Part of the reference model (`gpt`), which stacks the blocks between embedding and logits and lists the letters of
shapes. Not here: faster forms of attention (`block_attention`, `fused_attention`, `cpu`, `cuda`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module

from nanochat.model.config import GPTConfig


class LayerCache(Protocol):
    """Keys and values of one layer's earlier positions."""

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Store new keys and values (B, G, T, D); return `attention` of the queries (B, H, T, D) over all of them."""
        ...


class Cache(Protocol):
    """The state of earlier positions, which the model reads and writes while it decodes."""

    @property
    def offset(self) -> int | mx.array:
        """Number of positions already in the cache, or (B,) of them if the rows differ."""
        ...

    @property
    def newest(self) -> mx.array | None:
        """(B, 1) newest token of each row, which the smear needs, -1 if there is none; None if all rows are empty."""
        ...

    @property
    def layers(self) -> Sequence[LayerCache]: ...

    def advance(self, idx: mx.array) -> None:
        """Count the positions of new tokens (B, T), after every layer has stored them."""
        ...


class Linear(Module):
    """A linear map without bias: y = x W^T."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = mx.zeros(shape)

    def __call__(self, x: mx.array) -> mx.array:
        """Return (..., out) from (..., in), in x's dtype."""
        return x @ self.weight.astype(x.dtype).T


def norm(x: mx.array, eps: float) -> mx.array:
    """Return x / sqrt(mean(x^2) + eps) over the last axis, in x's dtype; MLX takes the mean in float32."""
    return mx.fast.rms_norm(x, None, eps)


def rotate(x: mx.array, *, base: float, offset: int | mx.array) -> mx.array:
    """Return queries or keys x (B, H, T, D) with the rotary embedding of positions offset, offset + 1, ...

    The offset may differ between rows, (B,).
    Channels j and j + D/2 are a pair, which is rotated by the angle -position * base^(-2j/D), in float32 whatever x is.
    Source: Su et al. 2021 (2104.09864), section 3.2; the sign is nanochat's.
    """
    return mx.fast.rope(x, x.shape[-1], traditional=False, base=base, scale=-1.0, offset=offset)


def visible_keys(length: int, size: int, *, window: int) -> mx.array:
    """Return the attention mask (T, S) of the newest `length` of `size` positions.

    A position sees itself and the `window` positions before it.
    """
    distance = mx.arange(size - length, size)[:, None] - mx.arange(size)
    return (distance >= 0) & (distance <= window)


def repeat_heads(x: mx.array, queries: mx.array) -> mx.array:
    """Return keys or values (B, G, S, D) as (B, H, S, D): query head j reads key/value head j // (H / G)."""
    groups = queries.shape[1] // x.shape[1]
    return x if groups == 1 else mx.repeat(x, groups, axis=1)


def attention(queries: mx.array, keys: mx.array, values: mx.array, *, window: int) -> mx.array:
    """Return softmax(q k^T / sqrt(D)) v over the keys that each query sees, (B, H, T, D) in the values' dtype.

    Args:
        queries: (B, H, T, D), normed; the newest T of the S positions.
        keys: (B, G, S, D), normed; G divides H.
        values: (B, G, S, D).
        window: how many positions before its own a query sees.
    """
    keys, values = repeat_heads(keys, queries), repeat_heads(values, queries)
    scores = (queries @ keys.swapaxes(-1, -2)).astype(mx.float32) * queries.shape[-1] ** -0.5
    mask = visible_keys(queries.shape[2], keys.shape[2], window=window)
    weights = mx.softmax(mx.where(mask, scores, -mx.inf), axis=-1)
    return weights.astype(values.dtype) @ values


def squared_relu(x: mx.array) -> mx.array:
    """Return relu(x)^2. Source: So et al. 2021 (2109.08668)."""
    return mx.square(mx.maximum(x, 0))


Attend = Callable[..., mx.array]
"""A function with the arguments and the result of `attention`; `dispatch` has faster ones."""
Activate = Callable[[mx.array], mx.array]
"""`squared_relu`, or a form of it that keeps less for the backward pass."""


class CausalSelfAttention(Module):
    """Attention over a window, with normed queries and keys and, in every second layer, value embeddings.

        q = qk_scale * norm(rotate(c_q x)), k = qk_scale * norm(rotate(c_k x))   per head
        v = c_v x + gate_scale * sigmoid(ve_gate x) * value_embeds[layer][tokens]
        output = c_proj attention(q, k, v)

    Parameters: c_q (C, C), c_k and c_v (G * D, C), c_proj (C, C), and ve_gate (G, gate_channels) if the layer has value
    embeddings. ve_gate reads only the first gate_channels channels of x. `architectures.Variant` has the constants.
    """

    def __init__(self, config: GPTConfig, layer: int, attend: Attend) -> None:
        super().__init__()
        width, kv_width = config.n_embd, config.n_kv_head * config.head_dim
        self._config, self._layer, self._attend = config, layer, attend
        self.c_q = Linear((width, width))
        self.c_k = Linear((kv_width, width))
        self.c_v = Linear((kv_width, width))
        self.c_proj = Linear((width, width))
        if config.has_value_embedding(layer):
            self.ve_gate = Linear((config.n_kv_head, config.variant.gate_channels))

    def __call__(self, x: mx.array, value_rows: mx.array | None = None, cache: Cache | None = None) -> mx.array:
        """Return (B, T, C).

        Args:
            x: the normed residual stream, (B, T, C).
            value_rows: the tokens' value embeddings, (B, T, G * D); None in layers without.
            cache: earlier keys and values; it receives the new ones.
        """
        batch, length, _ = x.shape
        offset = 0 if cache is None else cache.offset
        base = self._config.variant.rope_base
        queries, keys = (
            self.norm_heads(rotate(self.split_heads(project(x)).swapaxes(1, 2), base=base, offset=offset))
            for project in (self.c_q, self.c_k)
        )
        values = self.gated_values(x, value_rows).swapaxes(1, 2)
        if cache is None:
            mixed = self._attend(queries, keys, values, window=self._config.windows[self._layer])
        else:
            mixed = cache.layers[self._layer].attend(queries, keys, values)
        return self.c_proj(mixed.swapaxes(1, 2).reshape(batch, length, -1))

    def gated_values(self, x: mx.array, value_rows: mx.array | None) -> mx.array:
        """Return the values (B, T, G, D): c_v x, plus the value embedding times one gate per head and token.

        The gate is gate_scale * sigmoid(ve_gate x) and reads only the first channels of x, as in nanochat.
        """
        values = self.split_heads(self.c_v(x))
        if value_rows is None:
            return values
        variant = self._config.variant
        gate = variant.gate_scale * mx.sigmoid(self.ve_gate(x[..., : variant.gate_channels]))
        return values + gate[..., None] * self.split_heads(value_rows)

    def split_heads(self, x: mx.array) -> mx.array:
        """Return (B, T, heads, D) from (B, T, heads * D)."""
        return x.reshape(*x.shape[:2], -1, self._config.head_dim)

    def norm_heads(self, x: mx.array) -> mx.array:
        """Return queries or keys with every head normed (QK norm) and multiplied by the architecture's factor."""
        variant = self._config.variant
        normed = norm(x, variant.norm_eps)
        return normed if variant.qk_scale == 1.0 else normed * variant.qk_scale


class MLP(Module):
    """c_proj relu(c_fc x)^2, with c_fc (4C, C) and c_proj (C, 4C)."""

    def __init__(self, config: GPTConfig, activate: Activate) -> None:
        super().__init__()
        self._activate = activate
        self.c_fc = Linear((4 * config.n_embd, config.n_embd))
        self.c_proj = Linear((config.n_embd, 4 * config.n_embd))

    def __call__(self, x: mx.array) -> mx.array:
        """Return (B, T, C) from the normed residual stream (B, T, C)."""
        return self.c_proj(self._activate(self.c_fc(x)))


class Block(Module):
    """Attention, then MLP; each reads the normed residual stream and its output is added to the stream."""

    def __init__(self, config: GPTConfig, layer: int, attend: Attend, activate: Activate) -> None:
        super().__init__()
        self._eps = config.variant.norm_eps
        self.attn = CausalSelfAttention(config, layer, attend)
        self.mlp = MLP(config, activate)

    def __call__(self, x: mx.array, value_rows: mx.array | None = None, cache: Cache | None = None) -> mx.array:
        """Return the residual stream (B, T, C) after this block; arguments as in `CausalSelfAttention`."""
        x = x + self.attn(norm(x, self._eps), value_rows, cache)
        return x + self.mlp(norm(x, self._eps))
