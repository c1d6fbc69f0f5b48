"""Fused projection to queries, keys and values on CUDA: one kernel rotates, norms and gates, another is its backward.

The fused projection of a token is a row of H query heads, G key heads, G value heads and, in layers with value
embeddings, the padded logits of the value gate. Norm and rotation commute, so the gradient needs only the results and
the factors of the norms. Shapes: N tokens, T positions of a row, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import mlx.core as mx

from nanochat.model.config import GPTConfig
from nanochat.model.cuda.embedding import TokenIndex, sum_rows
from nanochat.model.cuda.launch import THREADS
from nanochat.model.cuda.qkv_kernels import BACKWARD, SPLIT
from nanochat.model.rope_tables import angles

Arrays = tuple[mx.array, ...]
GATE_PADDING = 64
"""Columns for the gate's logits in a fused projection: matrix products are faster at multiples of 64."""


def split_qkv(
    config: GPTConfig,
    projected: mx.array,
    table: mx.array | None = None,
    tokens: TokenIndex | None = None,
    *,
    positions: int,
    offsets: mx.array | None = None,
    end: int = 0,
) -> tuple[mx.array, mx.array, mx.array]:
    """Return queries (N, H * D), keys and values (N, G * D), ready for attention, in the projection's dtype.

    Differentiable without offsets.

    Args:
        config: head counts and architecture constants.
        projected: (N, (H + 2 G) * D), with a table (N, (H + 2 G) * D + GATE_PADDING).
        table: (V, G * D) value embeddings; rows are rounded to the projection's dtype, which the gradient has.
        tokens: needed if there is a table.
        positions: T.
        offsets: (B,) int32, the position of each row's first token; None if all are 0.
        end: with offsets, a number above the position of every token.
    """
    if offsets is not None:
        idx = None if tokens is None else tokens.idx
        queries, keys, values, _, _ = _launch(config, positions, projected, table, idx, offsets, end)
        return queries, keys, values if table is not None else projected[:, -config.n_kv_head * config.head_dim :]
    if table is None or tokens is None:
        queries, keys, values, _ = _plain_split(config, positions)(projected)
    else:
        queries, keys, values, _, _ = _gated_split(config, positions)(projected, table, *tokens)
    return queries, keys, values


@functools.cache
def _plain_split(config: GPTConfig, positions: int) -> Callable[..., Arrays]:
    @mx.custom_function
    def run(projected: mx.array) -> Arrays:
        queries, keys, _, inverse, _ = _launch(config, positions, projected, None, None)
        return queries, keys, projected[:, -config.n_kv_head * config.head_dim :], inverse

    @run.vjp
    def _backward(_: mx.array, cotangents: Arrays, outputs: Arrays) -> mx.array:
        queries, keys, _, inverse = outputs
        return _launch_backward(config, positions, cotangents, (queries, keys, inverse, inverse), None, None)

    return cast("Callable[..., Arrays]", run)


@functools.cache
def _gated_split(config: GPTConfig, positions: int) -> Callable[..., Arrays]:
    @mx.custom_function
    def run(projected: mx.array, table: mx.array, idx: mx.array, order: mx.array, ordered: mx.array) -> Arrays:
        return tuple(_launch(config, positions, projected, table, idx))

    @run.vjp
    def _backward(primals: Arrays, cotangents: Arrays, outputs: Arrays) -> Arrays:
        _, table, *index = primals
        tokens = TokenIndex(*index)
        queries, keys, _, inverse, gates = outputs
        d_projected = _launch_backward(
            config, positions, cotangents, (queries, keys, inverse, gates), table, tokens.idx
        )
        d_table = sum_rows(cotangents[2], tokens, rows=table.shape[0], weights=gates)
        return d_projected, d_table, *(mx.zeros_like(x) for x in index)

    return cast("Callable[..., Arrays]", run)


def _launch(
    config: GPTConfig,
    positions: int,
    projected: mx.array,
    table: mx.array | None,
    idx: mx.array | None,
    offsets: mx.array | None = None,
    end: int = 0,
) -> list[mx.array]:
    rows, gated = projected.shape[0], table is not None
    h, g, d = config.n_head, config.n_kv_head, config.head_dim
    cosines, sines = angles(max(positions, end), d, config.variant.rope_base)
    groups = rows * (h + g + g * gated)
    return SPLIT(
        projected,
        cosines,
        sines,
        projected if table is None else table,
        cosines if idx is None else idx,
        cosines if offsets is None else offsets,
        blocks=-(-groups * (d // 16) // THREADS),
        shapes=[(rows, h * d), (rows, g * d), (rows, g * d) if gated else (1,), (rows, h + g), (rows, g)],
        dtypes=[projected.dtype] * 3 + [mx.float32] * 2,
        sizes=[rows, positions],
        constants=qkv_constants(config, projected.shape[1], gated) | {"CONTINUES": offsets is not None},
    )


def _launch_backward(
    config: GPTConfig, positions: int, cotangents: Arrays, kept: Arrays, table: mx.array | None, idx: mx.array | None
) -> mx.array:
    queries, keys, inverse, gates = kept
    rows = queries.shape[0]
    cosines, sines = angles(positions, config.head_dim, config.variant.rope_base)
    heads = config.n_head + 2 * config.n_kv_head
    width = heads * config.head_dim + (GATE_PADDING if table is not None else 0)
    return BACKWARD(
        *cotangents[:3],
        queries,
        keys,
        inverse,
        gates,
        cosines,
        sines,
        queries if table is None else table,
        cosines if idx is None else idx,
        blocks=-(-rows * heads * (config.head_dim // 16) // THREADS),
        shapes=[(rows, width)],
        dtypes=[queries.dtype],
        sizes=[rows, positions],
        constants=qkv_constants(config, width, table is not None),
    )[0]


def qkv_constants(config: GPTConfig, width: int, gated: bool) -> dict[str, int | float | bool]:
    """Return the sizes and numbers that kernels for a fused projection of `width` columns are compiled for."""
    variant = config.variant
    shape = {"H": config.n_head, "G": config.n_kv_head, "D": config.head_dim, "WIDTH": width, "GATED": gated}
    return shape | {"EPS": variant.norm_eps, "QK_SCALE": variant.qk_scale, "GATE_SCALE": variant.gate_scale}
