"""Batched scores of continuations equal those of each row's full logits."""

from __future__ import annotations

from itertools import chain

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.evals.continuations import (
    Continuation,
    _batches,
    make_continuation,
    score_continuations,
    shared_prefix_length,
)


def random_groups(seed: int, count: int) -> list[list[Continuation]]:
    """Questions of 1 to 60 tokens with 1 to 5 options of 1 to 12 tokens. Some options are empty."""
    generator = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return generator.integers(10, 300, size=generator.integers(low, high)).tolist()

    groups = []
    for number in range(count):
        question = [1, *tokens(0, 60)]
        rows = [question + tokens(0 if number % 7 == 0 else 1, 13) for _ in range(generator.integers(1, 6))]
        groups.append([make_continuation(row, len(question), max_tokens=None) for row in rows])
    return groups


def test_scores_in_batches_equal_those_of_single_rows(random_model, reference_score):
    """The tolerance is 1e-4 nats for up to 12 tokens; float32 noise is about 1e-5."""
    groups = random_groups(0, 25)
    expected = [(*reference_score(random_model, row), row.length) for row in chain(*groups)]
    for max_tokens in (1, 300, 8192):
        scores = score_continuations(random_model, groups, max_tokens_per_batch=max_tokens)
        assert [len(group) for group in scores] == [len(group) for group in groups]
        for (logprob, *exact), score in zip(expected, chain(*scores), strict=True):
            assert score.logprob == pytest.approx(logprob, abs=1e-4)
            assert [score.is_greedy, score.tokens] == exact


def test_score_is_greedy_for_the_most_likely_token_only(random_model):
    prompt = [1, *range(20, 60)]
    best = int(mx.argmax(random_model(mx.array([prompt]))[0, -1]).item())
    rows = [Continuation((*prompt, token), len(prompt)) for token in (best, (best + 1) % 300)]
    assert [score.is_greedy for score in score_continuations(random_model, [rows])[0]] == [True, False]


def test_progress_counts_every_group_once(random_model):
    counts: list[int] = []
    score_continuations(random_model, random_groups(1, 9), max_tokens_per_batch=100, on_scored=counts.append)
    assert counts == sorted(set(counts))
    assert counts[-1] == 9


def test_shared_prefix_ends_before_the_first_scored_prediction():
    """Token `start` is predicted at position start - 1, which must not be in the shared part."""
    rows = [Continuation((1, *range(20), 7, 8), 21), Continuation((1, *range(20), 7, 9), 21)]
    assert shared_prefix_length(rows) == 20
    assert shared_prefix_length([Continuation((1, *range(30)), 12), Continuation((1, *range(30)), 15)]) == 11
    assert shared_prefix_length(rows[:1]) == 0
    assert shared_prefix_length([Continuation((1, 2, 3, 4), 3), Continuation((1, 2, 3, 5), 3)]) == 0


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5), st.integers(1, 30)), max_size=30), st.integers(1, 900))
@settings(max_examples=30)
def test_batches_contain_every_group_once_and_respect_the_limit(shapes, max_tokens):
    groups = []
    for length, options, tail in shapes:
        row = tuple(range(length + tail))
        groups.append([Continuation((*row, 1000 + option), length) for option in range(options)])
    shared = [shared_prefix_length(group) for group in groups]
    batches = list(_batches(groups, shared, max_tokens))
    assert sorted(n for batch in batches for n in batch) == list(range(len(groups)))
    for batch in batches:
        cost = sum(shared[n] + sum(len(row.tokens) - shared[n] for row in groups[n]) for n in batch)
        assert len(batch) == 1 or cost <= max_tokens


@pytest.mark.parametrize(
    ("start", "max_tokens", "expected"),
    [
        (6, None, Continuation(tuple(range(10)), 6)),
        (6, 10, Continuation(tuple(range(10)), 6)),
        (6, 7, Continuation(tuple(range(3, 10)), 3, lost=(0, 1, 2))),
        (6, 3, Continuation((7, 8, 9), 1, lost=tuple(range(7)))),
        (0, None, Continuation(tuple(range(10)), 1)),
    ],
)
def test_long_rows_lose_their_first_tokens(start, max_tokens, expected):
    """Tokens that nothing predicts any more are not scored."""
    assert make_continuation(list(range(10)), start, max_tokens=max_tokens) == expected
