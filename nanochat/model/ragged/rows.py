"""Rows of different lengths in one axis, without padding; a row may go on from another, whose tokens stand there once.

Everything that looks at one position alone (projections, MLP, norms) sees N tokens and no padding; attention is
`ragged_attention`. Not here: keys and values that outlive a forward (`nanochat.inference.kv_cache`).
Shapes: N tokens in all, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import mlx.core as mx
import numpy as np

from nanochat.model.cuda.rope_tables import angles
from nanochat.model.ragged.row_groups import Extent, Grouping, group_rows


@dataclass(frozen=True)
class Row:
    """Some tokens, which go on from all of another row's where `parent` is its number."""

    tokens: tuple[int, ...]
    parent: int | None = None


@dataclass(eq=False)
class Ragged:
    """Where the tokens of rows stand in the one axis."""

    tokens: mx.array
    """(1, N), row after row."""
    extents: tuple[Extent, ...]
    """Of each row."""
    previous: mx.array
    """(N,) place of the token before, -1 where there is none."""
    positions: mx.array
    """(N,) how many tokens of its row, and before that, stand before each token."""
    longest: int
    """Tokens of the longest row, and before it."""
    _turns: dict[tuple[tuple[int, ...], float], tuple[mx.array, mx.array]] = field(default_factory=dict)

    @cached_property
    def grouping(self) -> Grouping:
        """The rows in groups, made once for all layers."""
        return group_rows(self.extents)

    def rotate(self, x: mx.array, *, base: float) -> mx.array:
        """Return x (N, H, D) rotated as `layers.rotate` does, each token by its position, in float32 whatever x is."""
        cos, sin = self._turn(x.shape[1:], base)
        half = x.shape[-1] // 2
        swapped = mx.concatenate([x[..., half:], x[..., :half]], axis=-1)
        return (x * cos + swapped * sin).astype(x.dtype)

    def _turn(self, shape: tuple[int, ...], base: float) -> tuple[mx.array, mx.array]:
        """Return cosine and signed sine of each token's angles, (N, H, D), computed once for all layers.

        They stand there for every head: a product that spreads an axis takes a CPU twice as long.
        """
        if (shape, base) not in self._turns:
            cos, sin = angles(self.longest, shape[-1], base)
            tables = mx.concatenate([cos, cos], axis=-1), mx.concatenate([sin, -sin], axis=-1)
            cosines, sines = (mx.repeat(table[self.positions][:, None], shape[0], axis=1) for table in tables)
            self._turns[shape, base] = cosines, sines
        return self._turns[shape, base]


def lay_out(rows: Sequence[Row]) -> Ragged:
    """Return the layout of rows, none of them empty, each behind its parent, which has no parent itself."""
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
