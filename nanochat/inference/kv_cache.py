"""Caches the keys and values of earlier positions. Buffers are preallocated, and windowed layers keep their window.

Prompts of different lengths share a batch by padding on the left. `KVCache(..., lengths=...)` stores how many of a
row's first positions are padding, and the model hides them. Rotary embeddings depend only on differences of positions,
so the shift of a row changes nothing.

Shape letters: B rows, G key/value heads, T new positions, S kept positions, D head size, C width.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from nanochat.inference.batch_sizes import CACHE_SLACK_TOKENS, PROMPT_CHUNK_TOKENS
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT


class LayerCache:
    """The keys and values of one layer. The newest `window` positions stay visible to the next position."""

    def __init__(self, window: int, capacity: int) -> None:
        """Keep `window` earlier positions in a buffer of at most `capacity` positions."""
        self.window = window
        self.capacity = min(capacity, window + CACHE_SLACK_TOKENS)
        self.used = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add (B, G, T, D); return up to `window` earlier positions and the new ones, (B, G, S, D), the newest last."""
        time = keys.shape[2]
        if self.keys is None or self.values is None:
            shape = (*keys.shape[:2], self.capacity, keys.shape[3])
            self.keys, self.values = mx.zeros(shape, keys.dtype), mx.zeros(shape, values.dtype)
        if self.used + time > self.capacity:
            return self._update_beyond_capacity(keys, values)
        end = self.used + time
        self.keys[:, :, self.used : end] = keys
        self.values[:, :, self.used : end] = values
        first = max(0, self.used - self.window)
        self.used = end
        return self.keys[:, :, first:end], self.values[:, :, first:end]

    def _update_beyond_capacity(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Return what `update` returns, and move the newest `window` positions to the front of the full buffer."""
        assert self.keys is not None and self.values is not None
        assert self.window <= self.capacity, f"the cache has room for {self.capacity} positions only"
        first = max(0, self.used - self.window)
        keys = mx.concatenate([self.keys[:, :, first : self.used], keys], axis=2)
        values = mx.concatenate([self.values[:, :, first : self.used], values], axis=2)
        self.used = min(self.window, keys.shape[2])
        size = keys.shape[2]
        self.keys[:, :, : self.used] = keys[:, :, size - self.used :]
        self.values[:, :, : self.used] = values[:, :, size - self.used :]
        return keys, values

    def with_rows(self, rows: mx.array) -> LayerCache:
        """Return a copy whose row i is row `rows[i]` of this cache."""
        copy = LayerCache(self.window, self.capacity)
        copy.used = self.used
        if self.keys is not None and self.values is not None:
            copy.keys, copy.values = self.keys[rows], self.values[rows]
        return copy


class KVCache:
    """The caches of all layers, and what else the model needs to know about earlier positions: a `model.gpt.Cache`."""

    def __init__(self, config: GPTConfig, *, capacity: int, lengths: Sequence[int] | None = None) -> None:
        """Create an empty cache.

        Args:
            config: the configuration of the model.
            capacity: positions of prompt and answer together. It decides the memory of layers without a window. A cache
                with more positions copies its buffers at each further step.
            lengths: number of tokens in each row's prompt if they differ. Pad the prompts on the left to the longest.
        """
        self.layers = [LayerCache(window, capacity) for window in config.windows]
        self.offset = 0
        self.starts: mx.array | None = None
        if lengths is not None and len(set(lengths)) > 1:
            self.starts = mx.array([max(lengths) - length for length in lengths], dtype=mx.int32)
        self.previous_embedding: mx.array | None = None

    def advance(self, tokens: int) -> None:
        """Add `tokens` new positions to the offset, after every layer has processed them."""
        self.offset += tokens

    def take(self, rows: Sequence[int]) -> KVCache:
        """Return a cache whose row i is row `rows[i]` of this cache. Rows can be dropped, repeated and reordered."""
        copy = KVCache.__new__(KVCache)
        index = mx.array(list(rows), dtype=mx.int32)
        copy.layers = [layer.with_rows(index) for layer in self.layers]
        copy.offset = self.offset
        copy.starts = None if self.starts is None else self.starts[index]
        copy.previous_embedding = None if self.previous_embedding is None else self.previous_embedding[index]
        return copy


def pad_left(prompts: Sequence[Sequence[int]], *, pad_id: int) -> mx.array:
    """Return prompts as (B, longest) int32, padded on the left with `pad_id`, for `KVCache(lengths=...)`."""
    longest = max(len(prompt) for prompt in prompts)
    return mx.array([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], dtype=mx.int32)


def prefill(model: FastGPT, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[mx.array, KVCache]:
    """Read prompts into a cache; return their last hidden states (B, C) and the cache, with `room` free positions.

    Shorter prompts are padded on the left, and the cache hides the padding, so that new tokens have the same position
    in every row. The model reads the prompts in causal chunks.
    """
    lengths = [len(prompt) for prompt in prompts]
    idx = pad_left(prompts, pad_id=prompts[0][0])
    cache = KVCache(model.config, capacity=idx.shape[1] + room, lengths=lengths)
    hidden = model.hidden(idx[:, :PROMPT_CHUNK_TOKENS], cache)
    for start in range(PROMPT_CHUNK_TOKENS, idx.shape[1], PROMPT_CHUNK_TOKENS):
        mx.eval(hidden)  # frees the activations of the previous chunk
        hidden = model.hidden(idx[:, start : start + PROMPT_CHUNK_TOKENS], cache)
    return hidden[:, -1], cache
