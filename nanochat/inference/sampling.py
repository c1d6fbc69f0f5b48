"""Choosing the next token from logits: greedy, by temperature, among the k likeliest.

Every row draws from a key of its own (B rows, V vocabulary), so what a row samples does not depend on which other rows
share its batch. Not here: when a row ends, forced tokens (see `engine`).
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from nanochat.errors import RecipeError


def check_settings(*, temperature: float, top_k: int | None) -> None:
    """Refuse sampling settings that mean nothing.

    Raises:
        RecipeError: a negative or infinite temperature, or a `top_k` below 1.
    """
    if not 0 <= temperature < float("inf"):
        raise RecipeError(f"temperature is {temperature}: give 0 (greedy) or a positive number")
    if top_k is not None and top_k < 1:
        raise RecipeError(f"top_k is {top_k}: give at least 1, or none to sample among all tokens")


def row_keys(seed: int, rows: Sequence[int]) -> mx.array:
    """Return one random key for each row number, (B, 2) uint32: the same seed and row number give the same key."""
    keys = [np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(2, np.uint32) for row in rows]
    return mx.array(np.stack(keys))


def step_keys(keys: mx.array, counts: Sequence[int]) -> mx.array:
    """Return the keys (B, 2) of the rows' draws number `counts`: a count in the second word suits threefry."""
    return keys + mx.array([[0, count] for count in counts], dtype=mx.uint32)


def sample(logits: mx.array, key: mx.array, *, temperature: float = 1.0, top_k: int | None = None) -> mx.array:
    """Return one token for each row, (B,) uint32, drawn from softmax(logits / temperature) over the `top_k` likeliest.

    The draw is the argmax of logits plus Gumbel noise (Maddison et al. 2014, "A* Sampling"), the same distribution.

    Args:
        logits: (B, V) float32.
        key: one key for all rows, (2,), or one for each, (B, 2); unused where the choice is greedy.
        temperature: 0 takes the largest logit, the first of equal ones.
        top_k: sample among so many tokens; None, or a number from V up, means all. Ties at the edge keep k tokens.

    Raises:
        RecipeError: see `check_settings`.
    """
    check_settings(temperature=temperature, top_k=top_k)
    rows, vocab_size = logits.shape
    if temperature == 0 or top_k == 1:
        return mx.argmax(logits, axis=-1)
    keys = mx.random.split(key, rows) if key.ndim == 1 else key
    logits = logits.astype(mx.float32)
    if top_k is None or top_k >= vocab_size:
        return mx.argmax(logits / temperature + _gumbel(keys, vocab_size), axis=-1)
    candidates = mx.argpartition(-logits, kth=top_k - 1, axis=-1)[:, :top_k]
    kept = mx.take_along_axis(logits, candidates, axis=-1)
    chosen = mx.argmax(kept / temperature + _gumbel(keys, top_k), axis=-1, keepdims=True)
    return mx.take_along_axis(candidates, chosen, axis=-1)[:, 0]


def _gumbel(keys: mx.array, count: int) -> mx.array:
    draw = mx.vmap(lambda key: mx.random.gumbel((count,), key=key))
    noise: mx.array = draw(keys)
    return noise
