"""Scaling laws in sentences, as JSON and as pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nanochat.runner.scaling_laws.analysis import analyse, analysis_to_json, describe_scaling
from nanochat.runner.scaling_laws.scaling_plots import draw_scaling


def noisy(results):
    return results(noise=0.004, seeds=2, rng=np.random.default_rng(0))


def test_describe_reports_every_budget_the_growth_and_the_law(results):
    lines = describe_scaling(analyse(noisy(results), "isoflop"))
    assert lines[0].startswith("15 settings, 30 runs; intervals in brackets hold 90%")
    assert [line.split(":")[0] for line in lines[1:4]] == ["1.00e16 FLOPs", "1.00e17 FLOPs", "1.00e18 FLOPs"]
    assert "the best size grows as FLOPs^0.4" in lines[4]
    assert "1.00e19 FLOPs (far beyond the runs)" in lines[5]
    assert lines[6].startswith("loss = E + A / N^a + B / D^b")
    assert len(lines) == 8


def test_describe_says_that_single_seeds_have_no_intervals(results):
    lines = describe_scaling(analyse(results(), "power"))
    assert "no setting was repeated with another seed" in lines[0]
    assert not any("[" in line for line in lines)


def test_analysis_of_no_results_has_a_sentence_for_each_fit():
    analysis = analyse([], "isoflop")
    assert [problem.split(":")[0] for problem in analysis.problems] == [
        "no isoFLOP curves",
        "no law of parameters and tokens",
    ]
    assert describe_scaling(analysis)[1:] == list(analysis.problems)


def test_analysis_to_json_has_the_numbers_of_the_fits(results):
    analysis = analyse(noisy(results), "isoflop")
    found = json.loads(json.dumps(analysis_to_json(analysis), allow_nan=False))
    assert analysis.law is not None
    energy = analysis.law.coefficients["E"]
    assert found["law"]["coefficients"]["E"] == {"value": energy.value, "interval": list(energy.interval)}
    assert [item["best"]["flops"] for item in found["isoflop"]] == pytest.approx([1e16, 1e17, 1e18])
    assert len(found["points"]) == 30


def test_draw_scaling_draws_what_was_fitted(results, tmp_path):
    drawn = draw_scaling(analyse(noisy(results), "isoflop"), tmp_path, loss_name="bits per byte")
    assert [path.name for path in drawn] == ["isoflop.png", "loss_by_compute.png", "tokens_per_parameter.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in drawn)


@pytest.mark.slow
def test_draw_scaling_of_the_law_alone_has_no_isoflop_curves(results, tmp_path):
    drawn = draw_scaling(analyse(noisy(results), "power"), tmp_path, loss_name="bits per byte")
    assert [path.name for path in drawn] == ["loss_by_compute.png", "tokens_per_parameter.png"]


def test_draw_scaling_of_no_results_draws_nothing(tmp_path):
    assert draw_scaling(analyse([], "isoflop"), tmp_path, loss_name="loss") == []
