"""Sampling follows the given distribution, and only the key decides a draw."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from nanochat.errors import RecipeError
from nanochat.inference.sampling import (
    Sampling,
    counts_by_selection,
    counts_by_sorting,
    row_key,
    sample,
    sampling_arrays,
    step_keys,
)

# softmax of these logits is 0.1, 0.2, 0.3, 0.4 in the order 3, 0, 4, 1; token 2 has none.
PROBABILITIES = {3: 0.1, 0: 0.2, 4: 0.3, 1: 0.4}
LOGITS = [math.log(PROBABILITIES.get(token, 1e-30)) for token in range(5)]
DRAWS = 6000
# 99.9 % quantiles of chi-square with 1, 2, 3 degrees of freedom (any table).
CHI_SQUARE_999 = {1: 10.83, 2: 13.82, 3: 16.27}


def row_keys(seed: int, rows: range) -> mx.array:
    return mx.array([row_key(seed, row) for row in rows], dtype=mx.uint32)


def draw(logits: mx.array, keys: mx.array, *rows: Sampling) -> list[int]:
    """Return a token for each row; one setting may count for all."""
    settings = rows * len(logits) if len(rows) == 1 else rows
    draws, filters = any(row.draws for row in rows), any(row.filters for row in rows)
    return sample(logits, keys, sampling_arrays(settings), draws=draws, filters=filters).tolist()


def draw_counts(sampling: Sampling, seed: int = 0) -> np.ndarray:
    keys = mx.random.split(mx.random.key(seed), DRAWS)
    return np.bincount(draw(mx.array([LOGITS] * DRAWS), keys, sampling), minlength=5)


def chi_square(counts: np.ndarray, expected: dict[int, float]) -> float:
    return sum((counts[token] - DRAWS * share) ** 2 / (DRAWS * share) for token, share in expected.items())


def test_sample_draws_tokens_by_their_probability():
    counts = draw_counts(Sampling())
    assert counts[2] == 0
    assert chi_square(counts, PROBABILITIES) < CHI_SQUARE_999[3]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(2, {4: 3 / 7, 1: 4 / 7}), (3, {0: 2 / 9, 4: 3 / 9, 1: 4 / 9}), (5, PROBABILITIES), (99, PROBABILITIES)],
)
def test_top_k_keeps_the_k_most_likely_tokens_in_proportion(top_k, expected):
    """A threshold at the largest value instead of the k-th would make the draw greedy."""
    counts = draw_counts(Sampling(top_k=top_k))
    assert counts.sum() == sum(counts[token] for token in expected)
    assert chi_square(counts, expected) < CHI_SQUARE_999[len(expected) - 1]


def test_temperature_raises_the_probabilities_to_its_inverse():
    squares = {token: share**2 / 0.30 for token, share in PROBABILITIES.items()}
    assert chi_square(draw_counts(Sampling(0.5)), squares) < CHI_SQUARE_999[3]
    top = {4: 9 / 25, 1: 16 / 25}
    assert chi_square(draw_counts(Sampling(0.5, 2)), top) < CHI_SQUARE_999[1]


def test_temperature_0_takes_the_first_of_the_largest_logits():
    logits = mx.array([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    for temperature, top_k in ((0.0, 50), (1.0, 1)):
        assert draw(logits, row_keys(0, range(2)), Sampling(temperature, top_k)) == [1, 0]


def test_top_k_keeps_exactly_k_tokens_if_logits_tie():
    assert len(set(draw(mx.zeros((4000, 6)), row_keys(3, range(4000)), Sampling(top_k=2)))) == 2


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(0.39, {1: 1.0}), (0.41, {4: 3 / 7, 1: 4 / 7}), (0.8, {0: 2 / 9, 4: 3 / 9, 1: 4 / 9}), (1e-9, {1: 1.0})],
)
def test_top_p_keeps_the_most_likely_tokens_that_reach_the_probability(top_p, expected):
    """The token that reaches it is kept too, so there is always one."""
    counts = draw_counts(Sampling(top_p=top_p))
    assert counts.sum() == sum(counts[token] for token in expected)
    if len(expected) > 1:
        assert chi_square(counts, expected) < CHI_SQUARE_999[len(expected) - 1]


def test_top_p_counts_the_probabilities_that_remain_after_top_k():
    """Of the two most likely tokens the first has 4/7 = 0.57, which reaches 0.5 alone."""
    assert set(np.flatnonzero(draw_counts(Sampling(top_k=2, top_p=0.5)))) == {1}
    assert set(np.flatnonzero(draw_counts(Sampling(top_k=2, top_p=0.6)))) == {1, 4}


@pytest.mark.parametrize("seed", range(5))
def test_selecting_keeps_the_tokens_that_sorting_keeps(seed):
    """Also where logits tie, which half of these do."""
    generator = np.random.default_rng(seed)
    logits = mx.array(generator.normal(size=(40, 30)).round(1).astype(np.float32) * 2)
    settings = [
        Sampling(top_k=int(k) or None, top_p=float(p))
        for k, p in zip(generator.integers(0, 35, 40), generator.choice([1.0, 0.9, 0.3, 0.01], 40), strict=True)
    ]
    arrays = sampling_arrays(settings)
    assert counts_by_selection(logits, arrays).tolist() == counts_by_sorting(logits, arrays).tolist()


def test_row_draws_the_same_alone_and_in_a_batch():
    """Rows have different settings, and some are greedy."""
    logits = mx.array(np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32))
    keys = row_keys(5, range(5))
    rows = [Sampling(), Sampling(top_k=3), Sampling(0.7, top_p=0.8), Sampling(0.0), Sampling(2.0, 5, 0.9)]
    alone = [draw(logits[i : i + 1], keys[i : i + 1], row)[0] for i, row in enumerate(rows)]
    assert draw(logits, keys, *rows) == alone


def test_rows_and_steps_of_one_seed_draw_independently():
    """Pairs of draws from a fair coin are uniform over the four outcomes."""
    keys = row_keys(7, range(500))
    flips = np.array([draw(mx.zeros((500, 2)), step_keys(keys, mx.full((500,), t)), Sampling()) for t in range(20)])
    quarter = flips[:-1].size / 4
    for pairs in (2 * flips[:-1] + flips[1:], 2 * flips[:, :-1] + flips[:, 1:]):
        counts = np.bincount(pairs.ravel(), minlength=4)
        assert (np.abs(counts - quarter) < 5 * math.sqrt(quarter)).all()


@pytest.mark.parametrize(
    "settings", [(-0.1,), (math.inf,), (math.nan, 5), (1.0, 0), (1.0, None, 0.0), (1.0, None, 1.01), (1.0, 5, math.nan)]
)
def test_sampling_refuses_invalid_settings(settings):
    with pytest.raises(RecipeError):
        Sampling(*settings)


@pytest.mark.parametrize(
    "settings",
    [Sampling(1e-40), Sampling(5e-324, 3), Sampling(1.0, None, 5e-324), Sampling(0.5, 1), Sampling(1e-8, 2**40)],
)
def test_settings_that_leave_one_token_take_the_most_likely_one(settings):
    """Their numbers are smaller or larger than those of the arrays, or the logits divided by them."""
    logits = mx.array([[-3.0, -15.0, 2.0, 15.0, -1.0], [-9.0, -2.0, -3.0, -4.0, -15.0]])
    tokens = sample(
        logits,
        mx.array([[1, 2], [3, 4]], mx.uint32),
        sampling_arrays([settings] * 2),
        draws=True,
        filters=settings.filters,
    )
    assert tokens.tolist() == [3, 1]


MIXED = (
    Sampling(),
    Sampling(0.0),
    Sampling(0.7, top_k=50),
    Sampling(1.3, top_p=0.6),
    Sampling(0.9, top_k=40, top_p=0.9),
    Sampling(2.0, top_k=10_000, top_p=0.99),
    Sampling(1.0, top_k=1),
    Sampling(1.0, top_k=2),
)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [301, 5000, 32_768])
@pytest.mark.parametrize("filters", [False, True])
def test_cuda_draws_what_sample_draws(vocab, filters):
    """All but a few of 2,048 tokens are the same; sums that are rounded otherwise may move the last token of top-p."""
    from nanochat.inference import sampling_kernels

    rows = MIXED if filters else MIXED[:2]
    count = 256
    settings = sampling_arrays(rows * (count // len(rows)))
    keys, counts = row_keys(3, range(count)), mx.arange(count, dtype=mx.int32) * 77
    different = 0
    for seed in range(8):
        logits = 4 * mx.random.normal((count, vocab), key=mx.random.key(seed))
        expected = sample(logits, step_keys(keys, counts), settings, draws=True, filters=filters)
        found = sampling_kernels.draw(logits, keys, counts, settings, filters=filters)
        different += (found != expected).sum().item()
    assert different <= (2 if filters else 0)


@pytest.mark.gpu
def test_cuda_advances_rows():
    from nanochat.inference import sampling_kernels

    rows = [mx.array(x, dtype=mx.int32) for x in ([-1, 7, 0], [3, 4, 5], [0, 94, 95], [8, 9, 10])]
    inputs, following, counted = sampling_kernels.advance(*rows, last=95)
    assert (inputs.tolist(), following.tolist(), counted.tolist()) == ([3, 7, 0], [1, 95, 95], [9, 10, 11])
