"""Groups of rows with similar shapes, padded to a common one: the batches that attention needs on a GPU.

Shapes: R rows of a group, P tokens before a row's own, T own tokens, S = P + T keys; N tokens in the axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from nanochat.model.layers import visible_keys

_MOST_WASTE = 8.0
"""Scores that a group may compute per score that it needs, not counting the causal half."""
_FEWEST_SCORES, _MOST_SCORES = 2**21, 2**22
"""Scores per head in a group: fewer take longer to launch than to compute, and more need over 16 MiB per head."""


@dataclass(frozen=True)
class Extent:
    """Slices of the axis that hold a row's own tokens and the tokens before them."""

    own: slice
    before: slice
    """Tokens of the parent row, which this row continues; empty without a parent."""

    @property
    def length(self) -> int:
        return int(self.own.stop - self.own.start)

    @property
    def context(self) -> int:
        return int(self.before.stop - self.before.start)


@dataclass(eq=False)
class Group:
    """Rows that attend together, padded: own tokens on the right, the tokens before them on the left."""

    queries: mx.array
    """(R, T) indices of the rows' own tokens; any index where a row is shorter."""
    keys: mx.array
    """(R, S) indices of the tokens that the rows see."""
    starts: mx.array | None
    """(R,) first key of each row; None if all begin at 0."""
    _biases: dict[int, mx.array] = field(default_factory=dict)

    def bias(self, window: int) -> mx.array:
        """Return 0 or -inf to add to the scores, (R, T, S) or (T, S), made once for all layers."""
        length, size = self.queries.shape[1], self.keys.shape[1]
        window = min(window, size)  # wider windows give the same mask
        if window not in self._biases:
            visible = visible_keys(length, size, window=window)
            if self.starts is not None:
                key, query = mx.arange(size), mx.arange(size - length, size)[:, None]
                # A padding position sees only itself, so that no softmax is empty.
                visible = (visible & (key >= self.starts[:, None, None])) | (key == query)
            self._biases[window] = mx.where(visible, mx.array(0.0), mx.array(-mx.inf))
        return self._biases[window]


@dataclass(frozen=True)
class Grouping:
    """All rows of an axis, in groups."""

    groups: tuple[Group, ...]
    order: mx.array
    """(N,) index of each token among the padded queries of all groups."""


def group_rows(extents: Sequence[Extent]) -> Grouping:
    """Return groups of the rows of an axis."""
    order, groups, used = np.empty(extents[-1].own.stop, dtype=np.int64), [], 0
    for numbers in _similar_rows(extents):
        members = [extents[n] for n in numbers]
        group = _group(members)
        for line, extent in enumerate(members):
            order[extent.own] = used + line * group.queries.shape[1] + np.arange(extent.length)
        used += group.queries.size
        groups.append(group)
    return Grouping(tuple(groups), mx.array(order.astype(np.int32)))


def _similar_rows(extents: Sequence[Extent]) -> Iterator[list[int]]:
    """Yield the indices of the rows of each group, rows of similar shape together."""
    numbers: list[int] = []
    needed = longest = most = 0
    shapes = [(extent.length, extent.context) for extent in extents]
    for n in sorted(range(len(shapes)), key=lambda n: (shapes[n][1] > 0, shapes[n][0] // 8, shapes[n][1])):
        length, context = shapes[n]
        size = length * (length + context)
        longest_with, most_with = max(longest, length), max(most, context)
        computed = (len(numbers) + 1) * longest_with * (longest_with + most_with)
        is_wasteful = computed > max(_FEWEST_SCORES, _MOST_WASTE * (needed + size))
        if numbers and (is_wasteful or computed > _MOST_SCORES or (context > 0) != (most > 0)):
            yield numbers
            numbers, needed, longest_with, most_with = [], 0, length, context
        numbers.append(n)
        needed, longest, most = needed + size, longest_with, most_with
    if numbers:
        yield numbers


def _group(members: Sequence[Extent]) -> Group:
    longest, most = max(x.length for x in members), max(x.context for x in members)
    queries = np.zeros((len(members), longest), dtype=np.int32)
    keys = np.zeros((len(members), most + longest), dtype=np.int32)
    for line, extent in enumerate(members):
        own = np.arange(extent.own.start, extent.own.stop)
        queries[line, : len(own)] = own
        keys[line, most - extent.context : most] = np.arange(extent.before.start, extent.before.stop)
        keys[line, most : most + len(own)] = own
    starts = np.array([most - extent.context for extent in members], dtype=np.int32)
    return Group(mx.array(queries), mx.array(keys), mx.array(starts) if starts.any() else None)
