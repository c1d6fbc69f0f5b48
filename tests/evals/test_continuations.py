"""Batched scores of spans equal what the whole row's logits say, one row at a time."""

from __future__ import annotations

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


def reference(model, span: Continuation) -> tuple[float, bool]:
    """In float64 from the full logits of the row alone."""
    logits = np.array(model(mx.array([list(span.tokens)]))[0], dtype=np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    scored = range(span.start, span.end)
    total = sum(logprobs[j - 1, span.tokens[j]] for j in scored)
    return total, all(int(logits[j - 1].argmax()) == span.tokens[j] for j in scored)


def random_groups(seed: int, count: int) -> list[list[Continuation]]:
    """Questions of 1 to 60 tokens with 1 to 5 options of 1 to 12, some empty; a few share nothing."""
    generator = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> list[int]:
        return generator.integers(10, 320, size=generator.integers(low, high)).tolist()

    groups = []
    for number in range(count):
        question = [1, *tokens(0, 60)]
        rows = [question + tokens(0 if number % 7 == 0 else 1, 13) for _ in range(generator.integers(1, 6))]
        groups.append([make_continuation(row, len(question), len(row), max_tokens=None) for row in rows])
    return groups


@pytest.mark.parametrize("max_tokens_per_batch", [1, 300, 8192])
def test_batched_scores_equal_one_by_one(random_model, max_tokens_per_batch):
    """1e-4 nats for up to 12 tokens: float32 noise is 1e-5."""
    groups = random_groups(0, 25)
    found = score_continuations(random_model, groups, max_tokens_per_batch=max_tokens_per_batch)
    for group, scores in zip(groups, found, strict=True):
        assert len(scores) == len(group)
        for span, score in zip(group, scores, strict=True):
            logprob, is_greedy = reference(random_model, span)
            assert score.logprob == pytest.approx(logprob, abs=1e-4)
            assert score.is_greedy == is_greedy
            assert score.tokens == span.end - span.start


def test_the_likeliest_continuation_is_greedy(random_model):
    """The argmax after the prompt is greedy, any other token is not."""
    prompt = [1, *range(20, 60)]
    best = int(mx.argmax(random_model(mx.array([prompt]))[0, -1]).item())
    rows = [Continuation((*prompt, token), len(prompt), len(prompt) + 1) for token in (best, (best + 1) % 320)]
    assert [score.is_greedy for score in score_continuations(random_model, [rows])[0]] == [True, False]


def test_progress_counts_every_group_once(random_model):
    counts: list[int] = []
    score_continuations(random_model, random_groups(1, 9), max_tokens_per_batch=100, on_scored=counts.append)
    assert counts == sorted(set(counts))
    assert counts[-1] == 9


def test_the_common_beginning_stops_before_the_first_scored_prediction():
    """Token `start` is predicted at position start - 1, which must not be in the shared part."""
    rows = [Continuation((1, *range(20), 7, 8), 21, 23), Continuation((1, *range(20), 7, 9), 21, 23)]
    assert shared_prefix_length(rows) == 20
    assert shared_prefix_length([Continuation((1, *range(30)), 12, 31), Continuation((1, *range(30)), 15, 31)]) == 11
    assert shared_prefix_length(rows[:1]) == 0
    assert shared_prefix_length([Continuation((1, 2, 3, 4), 3, 4), Continuation((1, 2, 3, 5), 3, 4)]) == 0


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 5), st.integers(1, 30)), max_size=30), st.integers(1, 900))
@settings(max_examples=60)
def test_batches_hold_every_group_once_and_keep_their_size(shapes, max_tokens):
    groups = []
    for length, options, tail in shapes:
        row = tuple(range(length + tail))
        groups.append([Continuation((*row, 1000 + option), length, length + tail + 1) for option in range(options)])
    batches = list(_batches(groups, [shared_prefix_length(group) for group in groups], max_tokens))
    assert sorted(n for batch in batches for n in batch) == list(range(len(groups)))
    for batch in batches:
        cost = 0
        for n in batch:
            share = shared_prefix_length(groups[n])
            cost += share + sum(len(span.tokens) - share for span in groups[n])
        assert len(batch) == 1 or cost <= max_tokens


@pytest.mark.parametrize(
    ("start", "end", "max_tokens", "expected"),
    [
        (6, 10, None, Continuation(tuple(range(10)), 6, 10)),
        (6, 10, 10, Continuation(tuple(range(10)), 6, 10)),
        (6, 10, 7, Continuation(tuple(range(3, 10)), 3, 7, is_truncated=True)),
        (6, 10, 3, Continuation((7, 8, 9), 1, 3, is_truncated=True)),
        (0, 10, None, Continuation(tuple(range(10)), 1, 10)),
    ],
)
def test_long_rows_lose_tokens_on_the_left(start, end, max_tokens, expected):
    """Start and end move along; what nothing predicts any more is not scored."""
    assert make_continuation(list(range(10)), start, end, max_tokens=max_tokens) == expected
