"""Scores agree with their formulas, worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.evals.metrics import centre, composite, pass_at_k, score_problems


def test_standard_error_of_right_and_wrong_answers_is_binomial():
    score = score_problems([1.0, 1.0, 1.0, 0.0], chance=0.25)
    assert (score.accuracy, score.n) == (0.75, 4)
    assert score.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert score.centred == pytest.approx(2 / 3)


def test_centre_maps_chance_to_0_and_all_right_to_1():
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


def test_composite_is_the_mean_over_suites_and_not_over_problems():
    small, large = score_problems([1.0], chance=0.25), score_problems([0.0, 0.0, 1.0, 1.0], chance=0.0)
    plain, centred = composite([small, large])
    assert plain == pytest.approx(0.75)
    assert centred == pytest.approx(0.75)
    assert composite([score_problems([0.0], chance=0.25)])[1] == pytest.approx(-1 / 3)
