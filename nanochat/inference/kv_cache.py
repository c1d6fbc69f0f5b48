"""KVCache: keys and values of earlier positions, preallocated and written in place; windowed layers keep their window.

Prompts of different lengths share a batch by padding on the left: `KVCache(..., lengths=...)` knows how many of a row's
first positions are padding, and the model hides them. The rotation depends on differences of positions only, so a row's
shift changes nothing. Shapes: B rows, G key/value heads, T new positions, S kept positions, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from nanochat.inference.batch_sizes import CACHE_SLACK_TOKENS
from nanochat.model.config import GPTConfig


class LayerCache:
    """One layer's keys and values: the newest `window` positions stay visible to the next one."""

    def __init__(self, window: int, capacity: int) -> None:
        """Keep `window` earlier positions, in a buffer of at most `capacity`."""
        self.window = window
        self.capacity = min(capacity, window + CACHE_SLACK_TOKENS)
        self.used = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def update(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add (B, G, T, D); return the new positions and up to `window` before them, (B, G, S, D), the newest last."""
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
        """Make room: join the window with the new positions, and write what the next position sees to the front."""
        assert self.keys is not None and self.values is not None
        assert self.window <= self.capacity, f"the cache has room for {self.capacity} positions, and more are coming"
        first = max(0, self.used - self.window)
        keys = mx.concatenate([self.keys[:, :, first : self.used], keys], axis=2)
        values = mx.concatenate([self.values[:, :, first : self.used], values], axis=2)
        self.used = min(self.window, keys.shape[2])
        size = keys.shape[2]
        self.keys[:, :, : self.used] = keys[:, :, size - self.used :]
        self.values[:, :, : self.used] = values[:, :, size - self.used :]
        return keys, values

    def with_rows(self, rows: mx.array) -> LayerCache:
        """Return a copy whose row i is this one's row rows[i]."""
        copy = LayerCache(self.window, self.capacity)
        copy.used = self.used
        if self.keys is not None and self.values is not None:
            copy.keys, copy.values = self.keys[rows], self.values[rows]
        return copy


class KVCache:
    """Every layer's cache, and what else the model needs of earlier positions.

    Attributes:
        layers: one cache a layer.
        offset: positions that are in, padding included.
        starts: (B,) first real position of each row; None where no row is padded.
        previous_embedding: (B, 1, C) normed embedding of the newest position, for the smear.
    """

    def __init__(self, config: GPTConfig, *, capacity: int, lengths: Sequence[int] | None = None) -> None:
        """Make room for `capacity` positions (prompt and what is generated; memory follows it, and each window).

        Args:
            config: the model's.
            capacity: positions that a row may come to hold; a cache that gets more copies at each further step.
            lengths: tokens of each row's prompt, where they differ: feed the prompts padded on the left to the longest.
        """
        self.layers = [LayerCache(window, capacity) for window in config.windows]
        self.offset = 0
        self.starts: mx.array | None = None
        if lengths is not None and len(set(lengths)) > 1:
            self.starts = mx.array([max(lengths) - length for length in lengths], dtype=mx.int32)
        self.previous_embedding: mx.array | None = None

    def advance(self, tokens: int) -> None:
        """Count `tokens` new positions, after every layer has seen them."""
        self.offset += tokens

    def expand(self, rows: int) -> KVCache:
        """Return a cache of `rows` rows, each a copy of this one's only row."""
        return self.take([0] * rows)

    def take(self, rows: Sequence[int]) -> KVCache:
        """Return a cache whose row i is this one's row rows[i]: drops, repeats or reorders rows."""
        copy = KVCache.__new__(KVCache)
        index = mx.array(list(rows), dtype=mx.int32)
        copy.layers = [layer.with_rows(index) for layer in self.layers]
        copy.offset = self.offset
        copy.starts = None if self.starts is None else self.starts[index]
        copy.previous_embedding = None if self.previous_embedding is None else self.previous_embedding[index]
        return copy

    @property
    def nbytes(self) -> int:
        """Bytes held by the buffers."""
        arrays = [x for layer in self.layers for x in (layer.keys, layer.values) if x is not None]
        return sum(x.nbytes for x in arrays)


def pad_left(prompts: Sequence[Sequence[int]], *, pad_id: int) -> mx.array:
    """Return prompts as (B, longest) int32, padded on the left with `pad_id`, for `KVCache(lengths=...)`."""
    longest = max(len(prompt) for prompt in prompts)
    return mx.array([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts], dtype=mx.int32)
