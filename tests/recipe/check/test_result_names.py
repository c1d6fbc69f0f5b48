"""Names of results that `expect` accepts, with the metrics that suites are known to have."""

import pytest

from nanochat.recipe.check.result_names import unknown_result

SUITES = {
    "bits": {"task": "bpb"},
    "core": {"task": "core"},
    "greedy": {"task": "gsm8k", "num_samples": 4},
    "drawn": {"task": "gsm8k", "num_samples": 6, "temperature": 0.8},
}


def problem(key):
    return unknown_result({"chat_eval": {"suites": SUITES}}, ("expect", key))


@pytest.mark.parametrize(
    "metric",
    [
        *("bits", "bits.bytes", "bits.tokens", "core.arc_easy", "core.anything", "greedy.stderr", "greedy.n"),
        *("drawn.centred", "drawn.pass_at_1", "drawn.pass_at_4", "drawn.pass_at_6", "drawn.answers_cut"),
    ],
)
def test_metrics_of_a_suite_are_results(metric):
    assert problem(f"chat_eval.{metric}") is None


@pytest.mark.parametrize(
    ("metric", "suggestion"),
    [
        ("bits.stderr", "allowed: bytes, tokens"),
        ("greedy.", "allowed: answers_cut, "),
        ("greedy.pass_at_4", "allowed: answers_cut, centred, examples_cut, n, "),
        ("drawn.pass_at_3", "did you mean `pass_at_1`?"),
        ("drawn.sterr", "did you mean `stderr`?"),
    ],
)
def test_other_metrics_of_a_suite_are_refused_with_those_that_it_has(metric, suggestion):
    suite, _, detail = metric.partition(".")
    found = problem(f"chat_eval.{metric}")
    assert found.message == f"`chat_eval.{suite}` has no metric `{detail}`"
    assert found.help.startswith(suggestion)


def test_suite_of_a_sweep_may_have_metrics_in_some_cells_only():
    sweep = {"over": {"chat_eval.suites.greedy.temperature": [0.5, 1.0]}}
    data = {"sweep": sweep, "chat_eval": {"suites": SUITES}}
    assert unknown_result(data, ("expect", "chat_eval.greedy.pass_at_4")) is None
