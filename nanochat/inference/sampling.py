"""Samples the next token from logits: greedily, with a temperature, among the most likely tokens (top-k, top-p).

Every row has its own settings and its own key, so that its samples do not depend on the other rows of its batch. Not
here: when a row ends, forced tokens (`engine`).

Shape letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from nanochat.errors import RecipeError
from nanochat.model.device import runs_on_cpu

_ALL_TOKENS = 2**30
"""More than any vocabulary has, and an int32."""
_MIN_TEMPERATURE = 1e-6
"""Draws with less are greedy in effect, and logits that are divided by much less overflow."""
_MIN_TOP_P = 1e-30
"""A smaller number may be 0 as a float32, and no token would be kept."""


@dataclass(frozen=True)
class Sampling:
    """How one row is sampled. Invalid values raise a RecipeError."""

    temperature: float = 1.0
    """The logits are divided by it; 0 takes the most likely token."""
    top_k: int | None = None
    """Sample among this many most likely tokens; None means all."""
    top_p: float = 1.0
    """Sample among the most likely tokens of this total probability, after `top_k`; 1 means all.

    Source: Holtzman et al. 2019 (1904.09751), section 3.1.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise RecipeError(f"temperature is {self.temperature}: give 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise RecipeError(f"top_k is {self.top_k}: give at least 1, or leave it out to sample among all tokens")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p is {self.top_p}: give more than 0 and at most 1")

    @property
    def draws(self) -> bool:
        """Whether the choice is random."""
        return self.temperature > 0 and self.top_k != 1

    @property
    def filters(self) -> bool:
        """Whether the choice is random but not among all tokens."""
        return self.draws and (self.top_k is not None or self.top_p < 1)


class SamplingArrays(NamedTuple):
    """The settings of all rows of a batch, and what decides which work a batch needs."""

    temperature: mx.array
    """(B,) float32; 0 for every row that does not draw."""
    top_k: mx.array
    """(B,) int32; at least V if all tokens count."""
    top_p: mx.array
    """(B,) float32."""


def sampling_arrays(rows: Sequence[Sampling]) -> SamplingArrays:
    """Return the settings of rows as arrays, whose numbers are bounded where those of a row do not fit into them."""
    return SamplingArrays(
        mx.array([max(row.temperature, _MIN_TEMPERATURE) if row.draws else 0.0 for row in rows], dtype=mx.float32),
        mx.array([min(row.top_k or _ALL_TOKENS, _ALL_TOKENS) for row in rows], dtype=mx.int32),
        mx.array([max(row.top_p, _MIN_TOP_P) for row in rows], dtype=mx.float32),
    )


def row_key(seed: int, row: int) -> tuple[int, int]:
    """Return the random key of a row, which depends only on the seed and the row number."""
    first, second = np.random.SeedSequence(seed, spawn_key=(row,)).generate_state(2, np.uint32).tolist()
    return first, second


def step_keys(keys: mx.array, counts: mx.array) -> mx.array:
    """Return the keys (B, 2) of draw number `counts` (B,): a count is added to the second word of its row's key."""
    return keys + mx.stack([mx.zeros_like(counts), counts], axis=1).astype(mx.uint32)


def sample(logits: mx.array, keys: mx.array, settings: SamplingArrays, *, draws: bool, filters: bool) -> mx.array:
    """Return one token for each row, (B,) int32, drawn from softmax(logits / temperature) over the tokens that count.

    The draw is the argmax of logits plus Gumbel noise, which has this distribution (Maddison et al. 2014, "A*
    Sampling"). A row draws the same alone and in any batch.

    Args:
        logits: (B, V) float32.
        keys: one key per row, (B, 2). Greedy choices do not use them.
        settings: of each row. Temperature 0 takes the largest logit, and the first one of a tie.
        draws: whether any row draws.
        filters: whether any row samples among the most likely tokens only.
    """
    greedy = mx.argmax(logits, axis=-1).astype(mx.int32)
    if not draws:
        return greedy
    is_greedy = settings.temperature == 0
    scaled = logits.astype(mx.float32) / mx.where(is_greedy, 1.0, settings.temperature)[:, None]
    if filters:
        counts = counts_by_selection if runs_on_cpu() else counts_by_sorting
        scaled = mx.where(counts(scaled, settings), scaled, -mx.inf)
    draw = mx.vmap(lambda key: mx.random.gumbel((logits.shape[-1],), key=key))
    return mx.where(is_greedy, greedy, mx.argmax(scaled + draw(keys), axis=-1).astype(mx.int32))


def counts_by_sorting(scaled: mx.array, settings: SamplingArrays) -> mx.array:
    """Return which tokens top-k and then top-p keep, (B, V) bool. Exactly k are kept if logits tie.

    These are the `count` most likely tokens. Logits are compared with the last one that is kept, instead of being
    indexed by rank: for indexing by arrays, MLX would compile kernels for many seconds on CUDA.
    """
    ranked, ranks = -mx.sort(-scaled, axis=-1), mx.arange(scaled.shape[-1])
    among_k = ranks < settings.top_k[:, None]
    probabilities = mx.softmax(mx.where(among_k, ranked, -mx.inf), axis=-1)
    # The most likely token has nothing before it, so it always stays.
    before = mx.cumsum(probabilities, axis=-1) - probabilities
    count = (among_k & (before < settings.top_p[:, None])).sum(axis=-1, keepdims=True)
    last = mx.where(ranks == count - 1, ranked, 0).sum(axis=-1, keepdims=True)
    is_above, is_last = scaled > last, scaled == last
    ties = mx.cumsum(is_last.astype(mx.int32), axis=-1)
    return is_above | (is_last & (ties <= count - is_above.sum(axis=-1, keepdims=True)))


def counts_by_selection(scaled: mx.array, settings: SamplingArrays) -> mx.array:
    """Return the same as `counts_by_sorting`, which takes longer than a model of 10M parameters on a CPU."""
    values = np.array(scaled)
    kept = np.zeros(values.shape, np.bool_)
    top_k, top_p = np.array(settings.top_k).tolist(), np.array(settings.top_p).tolist()
    for row, size, share, mask in zip(values, top_k, top_p, kept, strict=True):
        candidates = np.arange(row.size)
        if size < row.size:
            candidates = np.flatnonzero(row >= np.partition(row, row.size - size)[row.size - size])
        if size < candidates.size or share < 1:
            candidates = candidates[np.argsort(-row[candidates], kind="stable")][:size]
        if share < 1:
            probabilities = np.exp(row[candidates] - row[candidates[0]])
            probabilities /= probabilities.sum()
            candidates = candidates[np.cumsum(probabilities) - probabilities < share]
        mask[candidates] = True
    return mx.array(kept)
