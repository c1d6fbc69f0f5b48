"""Scores are what their formulas say, by hand."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.evals.metrics import centre, composite, pass_at_k, score


def test_the_standard_error_of_right_and_wrong_is_binomial():
    found = score([1.0, 1.0, 1.0, 0.0], chance=0.25)
    assert (found.accuracy, found.n) == (0.75, 4)
    assert found.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert found.centred == pytest.approx(2 / 3)


def test_centring_puts_chance_at_0_and_all_right_at_1():
    assert centre(0.25, 0.25) == 0.0
    assert centre(1.0, 0.25) == 1.0
    assert centre(0.0, 0.25) == pytest.approx(-1 / 3)
    assert centre(0.4, 0.0) == 0.4


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_k_subsets_with_a_passing_sample(case):
    num_samples, num_correct, k = case
    subsets = list(itertools.combinations(range(num_samples), k))
    share = sum(any(i < num_correct for i in subset) for subset in subsets) / len(subsets)
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(share, abs=1e-12)


def test_a_composite_is_the_mean_over_suites_not_over_problems():
    small, large = score([1.0], chance=0.25), score([0.0, 0.0, 1.0, 1.0], chance=0.0)
    plain, centred = composite([small, large])
    assert plain == pytest.approx(0.75)
    assert centred == pytest.approx(0.75)
    assert composite([score([0.0], chance=0.25)])[1] == pytest.approx(-1 / 3)
