"""Rows of different lengths in one axis, without padding; a row may go on from another, whose tokens stand there once.

Everything that looks at one position alone (projections, MLP, norms) sees N tokens and no padding. Attention takes the
rows in groups of similar shape, padded. Not here: keys and values
that outlive a forward (`nanochat.inference.kv_cache`).
Shapes: N tokens in all, R rows of a group, P tokens before a row's own, T own tokens, S = P + T keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from nanochat.model.attention import visible
from nanochat.model.kernels.launch import runs_kernels


@dataclass(frozen=True)
class _GroupSize:
    """When a group is full."""

    most_waste: float
    """Scores that it may compute for each one that is needed, beyond the causal half."""
    fewest_scores: int
    """Scores of a head that it may compute however many of them are needed: fewer cost more in operations."""
    most_scores: int


_SIZE = _GroupSize(1.5, 2**15, 2**17)
"""More scores leave a CPU's L2 cache."""
_CUDA_SIZE = _GroupSize(8.0, 2**21, 2**22)
"""To start an operation takes longer there than the arithmetic; what limits is memory, 16 MiB a head."""


@dataclass(frozen=True)
class Row:
    """Some tokens, which go on from all of another row's where `parent` is its number."""

    tokens: tuple[int, ...]
    parent: int | None = None


@dataclass(eq=False)
class Group:
    """Rows that attend together: shorter ones are padded, their own tokens on the right, what is before on the left."""

    queries: mx.array
    """(R, T) places of the rows' own tokens; any place where a row is shorter."""
    keys: mx.array
    """(R, S) places of what the rows see."""
    before: int
    """P, the largest of the rows'."""
    starts: mx.array | None
    """(R,) first key of each row, None where all begin at 0."""
    _masks: dict[int, mx.array] = field(default_factory=dict)
    _biases: dict[int, mx.array] = field(default_factory=dict)

    def mask(self, window: int) -> mx.array | None:
        """Return which keys each query sees, (R, 1, T, S), once for all layers; None where `window` says all."""
        if self.starts is None:
            return None
        if window not in self._masks:
            length, size = self.queries.shape[1], self.keys.shape[1]
            self._masks[window] = visible(length, size, window=window, starts=self.starts)
        return self._masks[window]

    def bias(self, window: int) -> mx.array:
        """Return what is added to scores, 0 or -inf, (R, T, S) or (T, S), once for all layers."""
        length, size = self.queries.shape[1], self.keys.shape[1]
        window = min(window, size)  # wider ones are the same
        if window not in self._biases:
            seen = visible(length, size, window=window, starts=self.starts)
            by_row = seen if self.starts is None else seen[:, 0]
            self._biases[window] = mx.where(by_row, mx.array(0.0), mx.array(-mx.inf))
        return self._biases[window]


@dataclass(eq=False)
class Ragged:
    """Where the tokens of rows stand in the one axis, and how they see each other."""

    tokens: mx.array
    """(1, N), row after row."""
    first: tuple[int, ...]
    """The place of each row's first token."""
    previous: mx.array
    """(N,) place of the token before, -1 where there is none."""
    groups: tuple[Group, ...]
    order: mx.array
    """(N,) place of each token among the groups' padded queries."""
    positions: mx.array
    """(N,) how many tokens of its row, and before that, stand before each token."""
    _turns: dict[tuple[int, float], tuple[mx.array, mx.array]] = field(default_factory=dict)

    def rotate(self, x: mx.array, *, base: float) -> mx.array:
        """Return x (N, H, D) rotated as `layers.rotate` does, each token by its position, in float32 whatever x is."""
        cos, sin = self._turn(x.shape[-1], base)
        half = x.shape[-1] // 2
        swapped = mx.concatenate([x[..., half:], x[..., :half]], axis=-1)
        return (x * cos + swapped * sin).astype(x.dtype)

    def _turn(self, size: int, base: float) -> tuple[mx.array, mx.array]:
        """Return cosine and signed sine of each token's angles, (N, 1, D), computed once for all layers."""
        if (size, base) not in self._turns:
            rates = mx.array(base ** (-np.arange(0, size, 2) / size), dtype=mx.float32)
            angles = self.positions[:, None, None].astype(mx.float32) * rates
            cos, sin = mx.cos(angles), mx.sin(angles)
            self._turns[size, base] = mx.concatenate([cos, cos], axis=-1), mx.concatenate([sin, -sin], axis=-1)
        return self._turns[size, base]


def lay_out(rows: Sequence[Row]) -> Ragged:
    """Return the layout of rows, none of them empty, each behind its parent, which has no parent itself."""
    lengths = [len(row.tokens) for row in rows]
    first = [0, *np.cumsum(lengths).tolist()]
    places = [np.arange(first[n], first[n + 1]) for n in range(len(rows))]
    before = [places[row.parent] if row.parent is not None else places[0][:0] for row in rows]
    previous = np.arange(-1, first[-1] - 1)
    positions = np.concatenate([len(x) + np.arange(length) for x, length in zip(before, lengths, strict=True)])
    for n in range(len(rows)):
        previous[first[n]] = before[n][-1] if len(before[n]) else -1
    order, groups, used = np.empty(first[-1], dtype=np.int64), [], 0
    for numbers in _alike(lengths, [len(x) for x in before]):
        group = _group([places[n] for n in numbers], [before[n] for n in numbers])
        for line, n in enumerate(numbers):
            order[places[n]] = used + line * group.queries.shape[1] + np.arange(lengths[n])
        used += group.queries.size
        groups.append(group)
    tokens = np.concatenate([row.tokens for row in rows])
    return Ragged(
        tokens=_index(tokens[None]),
        first=tuple(first[:-1]),
        previous=_index(previous),
        groups=tuple(groups),
        order=_index(order),
        positions=_index(positions),
    )


def _alike(lengths: Sequence[int], before: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of rows that make a group."""
    full = _CUDA_SIZE if runs_kernels() else _SIZE
    numbers: list[int] = []
    needed = longest = most = 0
    for n in sorted(range(len(lengths)), key=lambda n: (before[n] > 0, lengths[n] // 8, before[n])):
        size = lengths[n] * (lengths[n] + before[n])
        longest_with, most_with = max(longest, lengths[n]), max(most, before[n])
        computed = (len(numbers) + 1) * longest_with * (longest_with + most_with)
        is_wasteful = computed > max(full.fewest_scores, full.most_waste * (needed + size))
        if numbers and (is_wasteful or computed > full.most_scores or (before[n] > 0) != (most > 0)):
            yield numbers
            numbers, needed, longest_with, most_with = [], 0, lengths[n], before[n]
        numbers.append(n)
        needed, longest, most = needed + size, longest_with, most_with
    if numbers:
        yield numbers


def _group(own: Sequence[np.ndarray], before: Sequence[np.ndarray]) -> Group:
    longest, most = max(map(len, own)), max(map(len, before))
    queries = np.zeros((len(own), longest), dtype=np.int64)
    keys = np.zeros((len(own), most + longest), dtype=np.int64)
    for line, (places, earlier) in enumerate(zip(own, before, strict=True)):
        queries[line, : len(places)] = places
        keys[line, most - len(earlier) : most] = earlier
        keys[line, most : most + len(places)] = places
    starts = [most - len(earlier) for earlier in before]
    return Group(_index(queries), _index(keys), most, _index(np.array(starts)) if any(starts) else None)


def _index(values: np.ndarray) -> mx.array:
    return mx.array(values.astype(np.int32))
