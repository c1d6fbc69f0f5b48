"""Sampling follows the given distribution, and only the key decides a draw."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from nanochat.errors import RecipeError
from nanochat.inference.sampling import row_keys, sample, step_keys

# softmax of these logits is 0.1, 0.2, 0.3, 0.4 in the order 3, 0, 4, 1; token 2 has none.
PROBABILITIES = {3: 0.1, 0: 0.2, 4: 0.3, 1: 0.4}
LOGITS = [math.log(PROBABILITIES.get(token, 1e-30)) for token in range(5)]
DRAWS = 20_000
# 99.9 % quantiles of chi-square with 1, 2, 3 degrees of freedom (any table).
CHI_SQUARE_999 = {1: 10.83, 2: 13.82, 3: 16.27}


def draw_counts(*, temperature: float, top_k: int | None, seed: int = 0) -> np.ndarray:
    keys = mx.random.split(mx.random.key(seed), DRAWS)
    tokens = sample(mx.array([LOGITS] * DRAWS), keys, temperature=temperature, top_k=top_k)
    return np.bincount(np.array(tokens), minlength=5)


def chi_square(counts: np.ndarray, expected: dict[int, float]) -> float:
    return sum((counts[token] - DRAWS * share) ** 2 / (DRAWS * share) for token, share in expected.items())


def test_sample_draws_tokens_by_their_probability():
    counts = draw_counts(temperature=1.0, top_k=None)
    assert counts[2] == 0
    assert chi_square(counts, PROBABILITIES) < CHI_SQUARE_999[3]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(2, {4: 3 / 7, 1: 4 / 7}), (3, {0: 2 / 9, 4: 3 / 9, 1: 4 / 9}), (5, PROBABILITIES), (99, PROBABILITIES)],
)
def test_top_k_keeps_the_k_most_likely_tokens_in_proportion(top_k, expected):
    """A threshold at the largest value instead of the k-th would make the draw greedy."""
    counts = draw_counts(temperature=1.0, top_k=top_k)
    assert counts.sum() == sum(counts[token] for token in expected)
    assert chi_square(counts, expected) < CHI_SQUARE_999[len(expected) - 1]


def test_temperature_raises_the_probabilities_to_its_inverse():
    squares = {token: share**2 / 0.30 for token, share in PROBABILITIES.items()}
    assert chi_square(draw_counts(temperature=0.5, top_k=None), squares) < CHI_SQUARE_999[3]
    top = {4: 9 / 25, 1: 16 / 25}
    assert chi_square(draw_counts(temperature=0.5, top_k=2), top) < CHI_SQUARE_999[1]


def test_temperature_0_takes_the_first_of_the_largest_logits():
    logits = mx.array([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    for temperature, top_k in ((0.0, 50), (1.0, 1)):
        assert sample(logits, row_keys(0, range(2)), temperature=temperature, top_k=top_k).tolist() == [1, 0]


def test_top_k_keeps_exactly_k_tokens_if_logits_tie():
    assert len(set(sample(mx.zeros((4000, 6)), row_keys(3, range(4000)), top_k=2).tolist())) == 2


@pytest.mark.parametrize("top_k", [None, 3])
def test_row_draws_the_same_alone_and_in_a_batch(top_k):
    logits = mx.array(np.random.default_rng(0).normal(size=(7, 11)).astype(np.float32))
    keys = row_keys(5, range(7))
    together = sample(logits, keys, temperature=1.0, top_k=top_k).tolist()
    alone = [sample(logits[i : i + 1], keys[i : i + 1], temperature=1.0, top_k=top_k).item() for i in range(7)]
    assert together == alone


def test_rows_and_steps_of_one_seed_draw_independently():
    """Pairs of draws from a fair coin are uniform over the four outcomes."""
    keys = row_keys(7, range(500))
    flips = np.array(
        [sample(mx.zeros((500, 2)), step_keys(keys, [t] * 500), temperature=1.0).tolist() for t in range(20)]
    )
    quarter = flips[:-1].size / 4
    for pairs in (2 * flips[:-1] + flips[1:], 2 * flips[:, :-1] + flips[:, 1:]):
        counts = np.bincount(pairs.ravel(), minlength=4)
        assert (np.abs(counts - quarter) < 5 * math.sqrt(quarter)).all()


@pytest.mark.parametrize(("temperature", "top_k"), [(-0.1, None), (math.inf, None), (math.nan, 5), (1.0, 0)])
def test_sample_refuses_invalid_settings(temperature, top_k):
    with pytest.raises(RecipeError):
        sample(mx.zeros((1, 3)), row_keys(0, [0]), temperature=temperature, top_k=top_k)
