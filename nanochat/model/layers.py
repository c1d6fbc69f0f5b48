"""The parts of a block: linear maps, norm, rotation, attention, MLP.

Weights keep the dtype that they are stored in and are cast to the activations' dtype where they are used: float32
master weights, activations in the compute dtype. Shapes: B batch, T time, C width, H heads, G key/value heads, D head
size. Not here: which keys a query sees (`attention`), the residual stream across blocks (`gpt`).
"""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
from mlx.nn.layers.base import Module

from nanochat.model.attention import attention
from nanochat.model.config import GPTConfig
from nanochat.model.ragged.attention import ragged_attention
from nanochat.model.ragged.rows import Ragged


class LayerCache(Protocol):
    """Keys and values of one layer's earlier positions."""

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add (B, G, T, D) new keys and values; return all that are kept, (B, G, S, D), the newest last."""
        ...


class Linear(Module):
    """x W^T without bias, in the dtype of x."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = mx.zeros(shape)

    def __call__(self, x: mx.array) -> mx.array:
        """Return (..., out) from (..., in)."""
        return x @ self.weight.astype(x.dtype).T


class Embedding(Module):
    """A table of rows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = mx.zeros(shape)

    def __call__(self, idx: mx.array) -> mx.array:
        """Return the rows of `idx`, (..., width), in the weight's dtype."""
        return self.weight[idx]


def norm(x: mx.array, eps: float) -> mx.array:
    """Return x / sqrt(mean(x^2) + eps) over the last axis, in x's dtype (the mean is taken in float32)."""
    return mx.fast.rms_norm(x, None, eps)


def scaled(x: mx.array, factor: mx.array) -> mx.array:
    """Return x * factor in x's dtype; the product is taken in float32 so that a learned factor is not rounded."""
    return (x.astype(mx.float32) * factor.astype(mx.float32)).astype(x.dtype)


def rotate(x: mx.array, *, base: float, offset: int) -> mx.array:
    """Return x (B, H, T, D) rotated by minus position * base^(-2j/D), pairing channel j with j + D/2.

    Source: Su et al. 2021 (2104.09864), section 3.2; the sign is nanochat's. Angles are float32 whatever x is.
    """
    return mx.fast.rope(x, x.shape[-1], traditional=False, base=base, scale=-1.0, offset=offset)


def starts_among(starts: mx.array | None, keys: mx.array, *, newest: int) -> mx.array | None:
    """Return each row's first visible position, (B,), as an index into keys (B, G, S, D) that end before `newest`."""
    return None if starts is None else starts - (newest - keys.shape[2])


class Attention(Module):
    """Causal self-attention over a window, with normed queries and keys and, in some layers, value embeddings."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        width, kv_width = config.n_embd, config.n_kv_head * config.head_dim
        self._config = config
        self._window = config.windows[layer]
        self.c_q = Linear((width, width))
        self.c_k = Linear((kv_width, width))
        self.c_v = Linear((kv_width, width))
        self.c_proj = Linear((width, width))
        if config.has_value_embedding(layer):
            self.ve_gate = Linear((config.n_kv_head, config.variant.gate_channels))

    def __call__(
        self,
        x: mx.array,
        value_rows: mx.array | None,
        *,
        offset: int = 0,
        cache: LayerCache | None = None,
        starts: mx.array | None = None,
        ragged: Ragged | None = None,
    ) -> mx.array:
        """Return (B, T, C) from normed inputs (B, T, C).

        Args:
            x: normed residual stream.
            value_rows: (B, T, G * D) value embeddings of the tokens, None in layers without.
            offset: position of the first token.
            cache: earlier keys and values; receives the new ones.
            starts: (B,) first visible position of each row, where rows are padded on the left.
            ragged: how the tokens, (1, N, C), make up rows; without cache.
        """
        batch, time, _ = x.shape
        values = self._split_heads(self.c_v(x))
        if value_rows is not None:
            values = values + self._gate(x) * self._split_heads(value_rows)
        if ragged is not None:
            queries, keys = (self._turned(project(x)[0], ragged) for project in (self.c_q, self.c_k))
            return self.c_proj(ragged_attention(queries, keys, values[0], ragged, window=self._window)[None])
        queries = self._positioned(self.c_q(x), offset)
        keys = self._positioned(self.c_k(x), offset)
        values = values.swapaxes(1, 2)
        if cache is not None:
            keys, values = cache.update(keys, values)
        starts = starts_among(starts, keys, newest=offset + time)
        mixed = attention(queries, keys, values, window=self._window, starts=starts)
        return self.c_proj(mixed.swapaxes(1, 2).reshape(batch, time, -1))

    def _turned(self, x: mx.array, ragged: Ragged) -> mx.array:
        """Split into heads, rotate, norm: (N, H * D) -> (N, H, D)."""
        heads = x.reshape(x.shape[0], -1, self._config.head_dim)
        return self._normed(ragged.rotate(heads, base=self._config.variant.rope_base))

    def _gate(self, x: mx.array) -> mx.array:
        variant = self._config.variant
        gate = variant.gate_scale * mx.sigmoid(self.ve_gate(x[..., : variant.gate_channels]))
        return gate[..., None]

    def _split_heads(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], -1, self._config.head_dim)

    def _positioned(self, x: mx.array, offset: int) -> mx.array:
        """Split into heads, rotate, norm: (B, T, H * D) -> (B, H, T, D)."""
        base = self._config.variant.rope_base
        return self._normed(rotate(self._split_heads(x).swapaxes(1, 2), base=base, offset=offset))

    def _normed(self, x: mx.array) -> mx.array:
        variant = self._config.variant
        normed = norm(x, variant.norm_eps)
        return normed if variant.qk_scale == 1.0 else normed * variant.qk_scale


class MLP(Module):
    """W_proj relu(W_fc x)^2, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear((4 * config.n_embd, config.n_embd))
        self.c_proj = Linear((config.n_embd, 4 * config.n_embd))

    def __call__(self, x: mx.array) -> mx.array:
        """Return (B, T, C) from normed inputs (B, T, C). Source: So et al. 2021 (2109.08668) for the squared ReLU."""
        return self.c_proj(mx.square(mx.maximum(self.c_fc(x), 0)))


class Block(Module):
    """Attention, then MLP, each on the normed residual stream and added to it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self._eps = config.variant.norm_eps
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def __call__(
        self,
        x: mx.array,
        value_rows: mx.array | None = None,
        *,
        offset: int = 0,
        cache: LayerCache | None = None,
        starts: mx.array | None = None,
        ragged: Ragged | None = None,
    ) -> mx.array:
        """Return the residual stream (B, T, C) after this block; arguments as in `Attention`."""
        x = x + self.attn(norm(x, self._eps), value_rows, offset=offset, cache=cache, starts=starts, ragged=ragged)
        return x + self.mlp(norm(x, self._eps))
