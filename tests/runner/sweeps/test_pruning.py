"""A search stops trials that are clearly worse than earlier ones, and keeps their runs."""

from __future__ import annotations

import json

import pytest

from nanochat.cli.run import main
from nanochat.runner.sweeps.running.pruning import is_worse, losses_of

SEARCH = """\
sweep:
  search:
    trials: 2
    space: {pretrain.optimizer.matrix_lr: {min: 0.01, max: 0.1}}
  until: base_eval
  rank_by: {base_eval.bpb: min}
"""
WITH_PRUNING = SEARCH.replace("trials: 2", "prune: median\n    trials: 3")


def test_a_trial_is_worse_if_its_loss_is_above_the_median_of_four_finished_trials():
    """The medians of the four are 5 at the first milestone and 2.5 at the second."""
    pytest.importorskip("optuna")
    earlier = [{1: 2.0, 2: 1.0}, {1: 4.0, 2: 2.0}, {1: 6.0, 2: 3.0}, {1: 8.0, 2: 4.0}]
    assert not is_worse({1: 4.9}, earlier)
    assert is_worse({1: 5.1}, earlier)
    assert is_worse({1: 4.9, 2: 2.6}, earlier)
    assert not is_worse({1: 4.9, 2: 2.4}, earlier)
    assert not is_worse({1: 5.1}, earlier[:3])
    assert not is_worse({}, earlier)


def test_milestones_are_a_quarter_half_and_three_quarters_of_the_steps(sweep):
    """Each loss is the mean of the tenth of the steps before the milestone: 4 of 40."""
    sweep.write("sweep: {over: {pretrain.horizon.steps: [40]}, until: pretrain}\n")
    sweep.run()
    (result,) = sweep.results()
    folder = result.run.state.folders(sweep.bench.base)["pretrain"]
    lines = [json.dumps({"step": n, "metrics": {"train/loss": float(n)}}) for n in range(1, 30)]
    folder.metrics.write_text("\n".join(lines) + "\n")
    assert losses_of(result, sweep.bench.base) == {1: 8.5, 2: 18.5}


def test_a_pruned_trial_is_reported_as_pruned_is_not_started_again_and_can_be_continued(
    sweep, calls, monkeypatch, capsys
):
    pytest.importorskip("optuna")
    monkeypatch.setattr("nanochat.runner.sweeps.running.pruning.MIN_TRIALS", 2)
    sweep.bench.control(varies="yes")
    sweep.write(SEARCH)
    sweep.run()
    calls()
    sweep.bench.control(pretrain="is worse", varies="yes")
    sweep.write(WITH_PRUNING)
    folder = sweep.run()
    assert calls() == ["pretrain"]
    assert [result.status for result in sweep.results()] == ["finished", "finished", "pruned"]
    assert "cell 3/3: pruned: its loss is above the median" in sweep.bench.display.text
    assert sweep.table()[4].split()[3:] == ["pruned", "-", "-"]
    assert "3 cells: 2 finished, 1 pruned." in folder.report.read_text()
    run = sweep.results()[2].run
    assert run.state.status == "interrupted"
    assert "; continue with: nanochat-run " in run.state.message
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(sweep.bench.base))
    assert main(["ls"]) == main(["compare", run.reference, "tiny"]) == 0
    shown = capsys.readouterr().out
    assert f"{run.reference}  pruned " in shown and f"Not finished: {run.reference} (pruned) has 1 of 5" in shown
    assert "interrupted" not in shown
    sweep.bench.control(varies="yes")
    sweep.run()
    assert calls() == []
    sweep.bench.run(*sweep.state().cells[2].overrides, last="base_eval")
    assert calls() == ["pretrain", "base_eval"]
    assert [result.status for result in sweep.results()] == ["finished"] * 3
