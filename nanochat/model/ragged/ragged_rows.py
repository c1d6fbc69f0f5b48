"""Rows of different lengths in one axis, without padding; a row may continue another row, which is then computed once.

Projections, MLP and norms look at one position at a time, so they see N tokens and no padding; attention is in
`ragged.attention`. Not here: keys and values that outlive a forward pass (`nanochat.inference.kv_cache`).
Shapes: N tokens in all rows, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx
import numpy as np

from nanochat.model.ragged.row_groups import Extent, Grouping, group_rows
from nanochat.model.rope_tables import angles


@dataclass(frozen=True)
class Row:
    """Tokens of a row. If `parent` is the number of another row, they continue that row."""

    tokens: tuple[int, ...]
    parent: int | None = None


@dataclass(eq=False)
class Ragged:
    """The layout of rows in one axis."""

    tokens: mx.array
    """(1, N), one row after the other."""
    extents: tuple[Extent, ...]
    """One per row."""
    previous: mx.array
    """(N,) index of the token before each token, -1 at the beginning of a row without parent."""
    positions: mx.array
    """(N,) position of each token in its row, its parent's tokens included."""
    longest: int
    """Tokens of the longest row, its parent's tokens included."""
    _rotations: dict[tuple[tuple[int, ...], float], tuple[mx.array, mx.array]] = field(default_factory=dict)

    @cached_property
    def grouping(self) -> Grouping:
        """The rows in groups for a GPU, made once for all layers."""
        return group_rows(self.extents)

    def rotate(self, x: mx.array, *, base: float) -> mx.array:
        """Return x (N, H, D) rotated as `layers.rotate` does, each token by its position, in float32 whatever x is."""
        cos, sin = self._angles(x.shape[1:], base)
        half = x.shape[-1] // 2
        swapped = mx.concatenate([x[..., half:], x[..., :half]], axis=-1)
        return (x * cos + swapped * sin).astype(x.dtype)

    def _angles(self, shape: tuple[int, ...], base: float) -> tuple[mx.array, mx.array]:
        """Return cosines and signed sines of each token's angles, (N, H, D), computed once for all layers.

        They are repeated for every head, because a CPU takes twice as long for a product that broadcasts an axis.
        """
        if (shape, base) not in self._rotations:
            cos, sin = angles(self.longest, shape[-1], base)
            tables = mx.concatenate([cos, cos], axis=-1), mx.concatenate([sin, -sin], axis=-1)
            cosines, sines = (mx.repeat(table[self.positions][:, None], shape[0], axis=1) for table in tables)
            self._rotations[shape, base] = cosines, sines
        return self._rotations[shape, base]


def lay_out(rows: Sequence[Row]) -> Ragged:
    """Return the layout of rows. No row is empty; a parent comes before its rows and has no parent itself."""
    extents: list[Extent] = []
    previous, positions, end = [], [], 0
    for row in rows:
        own = slice(end, end + len(row.tokens))
        before = extents[row.parent].own if row.parent is not None else slice(0, 0)
        extents.append(Extent(own, before))
        previous.append(np.arange(own.start - 1, own.stop - 1))
        previous[-1][0] = before.stop - 1
        positions.append(extents[-1].context + np.arange(len(row.tokens)))
        end = own.stop
    tokens = np.concatenate([row.tokens for row in rows])
    return Ragged(
        tokens=mx.array(tokens[None].astype(np.int32)),
        extents=tuple(extents),
        previous=mx.array(np.concatenate(previous).astype(np.int32)),
        positions=mx.array(np.concatenate(positions).astype(np.int32)),
        longest=max(extent.context + extent.length for extent in extents),
    )
