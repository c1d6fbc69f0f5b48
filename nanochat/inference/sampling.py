"""Samples the next token from logits: greedily, with a temperature, or among the k most likely tokens.

Every row draws with its own key, so that its samples do not depend on the other rows of its batch. Not here: when a row
ends, forced tokens (`engine`).

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from nanochat.errors import RecipeError


def check_settings(*, temperature: float, top_k: int | None) -> None:
    """Raise a RecipeError if the temperature is negative or infinite, or `top_k` is below 1."""
    if not 0 <= temperature < float("inf"):
        raise RecipeError(f"temperature is {temperature}: give 0 (greedy) or a positive number")
    if top_k is not None and top_k < 1:
        raise RecipeError(f"top_k is {top_k}: give at least 1, or leave it out to sample among all tokens")


def row_keys(seed: int, rows: Sequence[int]) -> mx.array:
    """Return one random key for each row number, (B, 2) uint32. It depends only on the seed and the row number."""
    keys = [np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(2, np.uint32) for row in rows]
    return mx.array(np.stack(keys))


def step_keys(keys: mx.array, counts: Sequence[int]) -> mx.array:
    """Return the keys (B, 2) for draws number `counts`; a count is added to the second word of its row's key."""
    return keys + mx.array([[0, count] for count in counts], dtype=mx.uint32)


def sample(logits: mx.array, keys: mx.array, *, temperature: float = 1.0, top_k: int | None = None) -> mx.array:
    """Return one token for each row, (B,) uint32, drawn from softmax(logits / temperature) over the `top_k` largest.

    The draw is the argmax of logits plus Gumbel noise, which has this distribution (Maddison et al. 2014, "A*
    Sampling").

    Args:
        logits: (B, V) float32.
        keys: one key per row, (B, 2). Greedy choices do not use them.
        temperature: 0 takes the largest logit, and the first one of a tie.
        top_k: number of most likely tokens to sample from. None, or V and more, means all tokens. If logits tie at the
            boundary, exactly k tokens are kept.
    """
    check_settings(temperature=temperature, top_k=top_k)
    vocab_size = logits.shape[-1]
    if temperature == 0 or top_k == 1:
        return mx.argmax(logits, axis=-1)
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
