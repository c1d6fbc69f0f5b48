"""Caches the keys and values of earlier positions: one cache reads prompts, the other decodes.

`PromptCache` keeps every position of prompts that are read in chunks. Shorter prompts are padded on the right, where no
real token sees the padding. `DecodingCache` adds one position per row and step; every row has its own position, so that
rows can begin and end independently. Its buffers have a fixed size, and those of windowed layers are rings.

Shape letters: B rows, H query heads, G key/value heads, T new positions, S kept positions, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from nanochat.inference.batch_sizes import buffer_size
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import attention


class Buffers(NamedTuple):
    """Keys and values of one layer, (B, G, S, D) each. Position p of a row is at index p % S."""

    keys: mx.array
    values: mx.array


class PromptLayer:
    """One layer's keys and values of the prompts, in order of their positions."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Store new keys and values (B, G, T, D), and return attention over each query's window, (B, H, T, D)."""
        if self.keys is not None and self.values is not None:
            keys = mx.concatenate([self.keys, keys], axis=2)
            values = mx.concatenate([self.values, values], axis=2)
        self.keys, self.values = keys, values
        first = max(0, keys.shape[2] - queries.shape[2] - self.window)
        return attention(queries, keys[:, :, first:], values[:, :, first:], window=self.window)


class PromptCache:
    """The positions of prompts that are read together: a `model.layers.Cache`."""

    def __init__(self, config: GPTConfig) -> None:
        self.layers = [PromptLayer(window) for window in config.windows]
        self.offset = 0
        self.newest: mx.array | None = None

    def advance(self, idx: mx.array) -> None:
        """Count the positions of tokens (B, T)."""
        self.offset += idx.shape[1]
        self.newest = idx[:, -1:]


class DecodingLayer:
    """One layer's buffers, to which each step adds one position per row."""

    def __init__(self, buffers: Buffers, positions: mx.array) -> None:
        self.buffers = buffers
        self.positions = positions

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Store keys and values (B, G, 1, D), and return attention over the positions in the buffers, (B, H, 1, D).

        Before a buffer is full, the mask hides its indices beyond the position. A full one is a ring of exactly the
        window and the position itself.
        """
        size = self.buffers.keys.shape[2]
        index = mx.broadcast_to((self.positions % size)[:, None, None, None], (*keys.shape[:3], 1))
        self.buffers = Buffers(
            mx.put_along_axis(self.buffers.keys, index, keys, axis=2),
            mx.put_along_axis(self.buffers.values, index, values, axis=2),
        )
        mask = (mx.arange(size) <= self.positions[:, None])[:, None, None]
        return mx.fast.scaled_dot_product_attention(queries, *self.buffers, scale=queries.shape[-1] ** -0.5, mask=mask)


class DecodingCache:
    """All layers' buffers, to which each step adds one position per row: a `model.layers.Cache`."""

    def __init__(self, buffers: Sequence[Buffers], positions: mx.array, newest: mx.array) -> None:
        """Continue the buffers of all layers.

        Args:
            buffers: those of every layer.
            positions: (B,) int32, the number of positions that each row has.
            newest: (B,) int32, the token at the newest position of each row, -1 in rows without a position.
        """
        self.layers = [DecodingLayer(buffer, positions) for buffer in buffers]
        self.offset = positions
        self.previous = newest
        """(B,) int32, the newest token of each row, -1 if there is none."""

    @property
    def newest(self) -> mx.array:
        return self.previous[:, None]

    @property
    def buffers(self) -> list[Buffers]:
        return [layer.buffers for layer in self.layers]

    def advance(self, idx: mx.array) -> None:
        """Count one more position, that of tokens (B, 1)."""
        self.offset = self.offset + 1
        self.previous = idx[:, 0]
        for layer in self.layers:
            layer.positions = self.offset


def empty_buffers(config: GPTConfig, rows: int, positions: int, dtype: mx.Dtype) -> list[Buffers]:
    """Return buffers of every layer for rows of up to `positions` positions."""
    shapes = [(rows, config.n_kv_head, buffer_size(window, positions), config.head_dim) for window in config.windows]
    return [Buffers(mx.zeros(shape, dtype), mx.zeros(shape, dtype)) for shape in shapes]


def grow(config: GPTConfig, buffers: Sequence[Buffers], positions: int) -> list[Buffers]:
    """Return buffers with room for `positions` positions per row. Those that are rings already stay as they are."""
    grown = []
    for window, buffer in zip(config.windows, buffers, strict=True):
        missing = buffer_size(window, positions) - buffer.keys.shape[2]
        padding = [(0, 0), (0, 0), (0, max(0, missing)), (0, 0)]
        grown.append(Buffers(*(mx.pad(x, padding) for x in buffer)) if missing > 0 else buffer)
    return grown


class PromptCopy(NamedTuple):
    """A prompt to copy from the cache of prompts into the buffers."""

    source: int
    """Its row in the cache of prompts."""
    row: int
    """Its row in the buffers."""
    length: int
    """Its tokens, without padding."""


def from_prompts(cache: PromptCache, buffers: Sequence[Buffers], copies: Sequence[PromptCopy]) -> list[Buffers]:
    """Return buffers, one for each layer, whose rows hold prompts that were read.

    Rows are copied as slices. To copy them by arrays of indices, CUDA would first compile kernels for half a minute.
    """
    for layer, buffer in zip(cache.layers, buffers, strict=True):
        assert layer.keys is not None and layer.values is not None, "the prompts have been read"
        for whole, prompts in zip(buffer, (layer.keys, layer.values), strict=True):
            if prompts.shape[2] > whole.shape[2]:
                for copy in copies:
                    _fill_ring(whole, prompts, copy)
                continue
            for sources, rows in _slices(copies):  # padding is hidden until the row's own positions replace it
                whole[rows, :, : prompts.shape[2]] = prompts[sources]
    return list(buffers)


def _fill_ring(ring: mx.array, prompts: mx.array, copy: PromptCopy) -> None:
    """Put the newest positions of a prompt (of B, G, T, D) into a row of a ring (B, G, S, D)."""
    size = ring.shape[2]
    begin = max(0, copy.length - size)
    at, row, prompt = begin % size, slice(copy.row, copy.row + 1), prompts[copy.source : copy.source + 1]
    ring[row, :, at:] = prompt[:, :, begin : begin + size - at]
    if at:
        ring[row, :, :at] = prompt[:, :, begin + size - at : begin + size]


def _slices(copies: Sequence[PromptCopy]) -> Iterator[tuple[slice, slice]]:
    """Yield pairs of slices (sources, rows) that together are all copies.

    Both have the same length, or one source goes to all rows.
    """
    first = 0
    for end in range(1, len(copies) + 1):
        if end < len(copies) and copies[end].row == copies[end - 1].row + 1:
            step = copies[end].source - copies[end - 1].source
            if step in (0, 1) and step == copies[first + 1].source - copies[first].source:
                continue
        yield slice(copies[first].source, copies[end - 1].source + 1), slice(copies[first].row, copies[end - 1].row + 1)
        first = end


def take_rows(x: mx.array, rows: Sequence[int]) -> mx.array:
    """Return a copy of the rows of an array (B, ...) with these numbers, at least one, copied as slices."""
    runs = [row for _, row in _slices([PromptCopy(row, row, 0) for row in rows])]
    if len(runs) == 1 and len(rows) > 1:  # MLX copies two slices, but one would keep the memory of all rows
        middle = rows[len(rows) // 2]
        runs = [slice(runs[0].start, middle), slice(middle, runs[0].stop)]
    return mx.concatenate([x[run] for run in runs])
