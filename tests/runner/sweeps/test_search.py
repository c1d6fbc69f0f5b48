"""A search proposes settings by their results, and continues as it would have."""

from __future__ import annotations

import os
import signal

import pytest

from nanochat.errors import InterruptedRun, PreflightError
from nanochat.recipe.schema.sweep_section import Sweep
from nanochat.runner.store.locks import sweep_lock
from nanochat.runner.store.sweep_state import CellEntry
from nanochat.runner.sweeps.results.cell_results import CellResult, Setting
from nanochat.runner.sweeps.results.result_table import headline
from nanochat.runner.sweeps.results.sweep_catalog import list_sweeps
from nanochat.runner.sweeps.results.sweep_snapshot import take_sweep_snapshot
from nanochat.runner.sweeps.running.search import propose
from nanochat.storage.layout import sweep_folders

SEARCH = """\
sweep:
  search:
    trials: 4
    space:
      pretrain.horizon.steps: {min: 4, max: 40}
      pretrain.tokens_per_step: {choices: [64, 0.128K]}
  until: base_eval
  rank_by: {base_eval.bpb: min}
"""


def test_a_search_without_optuna_says_what_to_install(sweep, monkeypatch, calls):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    sweep.write(SEARCH)
    with pytest.raises(PreflightError, match=r"pip install 'nanochat-run\[search\]'"):
        sweep.run()
    assert calls() == []


def settings(values):
    """Return settings with one cell each, whose result is (x - 0.3)^2."""
    entries = [CellEntry(number=1, values={"x.y": x}, seed=0, run="r", plan_digest="d", overrides=()) for x in values]
    cells = [
        CellResult(entry=e, run=None, status="finished", metrics={"a.b": (e.values["x.y"] - 0.3) ** 2}, message="")
        for e in entries
    ]
    return [Setting(values=cell.entry.values, cells=(cell,)) for cell in cells]


def test_proposals_follow_from_results_and_seed_and_approach_the_best_value():
    pytest.importorskip("optuna")
    space = {"x.y": {"min": 0.0, "max": 1.0}}
    sweep = Sweep.model_validate({"rank_by": {"a.b": "min"}, "search": {"trials": 30, "space": space}})
    tried: list[float] = []
    for _ in range(30):
        (values,) = propose(sweep, settings(tried), 1, seed=7)
        assert propose(sweep, settings(tried), 1, seed=7) == [values]
        tried.append(values["x.y"])
    assert all(0 <= x <= 1 and float(f"{x:.4g}") == x for x in tried)
    assert sum(abs(x - 0.3) < 0.1 for x in tried[15:]) > 2 * sum(abs(x - 0.3) < 0.1 for x in tried[:10])


def test_a_space_with_few_settings_is_exhausted():
    pytest.importorskip("optuna")
    space = {"x.y": {"choices": (1, 2)}}
    sweep = Sweep.model_validate({"rank_by": {"a.b": "min"}, "search": {"trials": 9, "space": space}})
    assert sorted(values["x.y"] for values in propose(sweep, [], 5, seed=0)) == [1, 2]
    assert propose(sweep, settings([1, 2]), 1, seed=0) == []


def test_a_search_that_was_killed_between_two_trials_is_interrupted_and_chooses_the_same_settings_again(sweep, calls):
    pytest.importorskip("optuna")
    sweep.write(SEARCH)
    sweep.bench.control(varies="yes")
    sweep.run()
    table = sweep.table()
    assert len(sweep.state().cells) == 4
    calls()
    state, (folder,) = sweep.state(), sweep_folders(sweep.bench.base)
    state.model_copy(update={"cells": state.cells[:2]}).write(folder.state)  # as after a kill
    (summary,) = list_sweeps(sweep.bench.base)
    assert summary.status == "interrupted" and headline(summary).startswith("sweep of 4 cells, 2 chosen so far; best")
    assert take_sweep_snapshot(folder, sweep.state(), sweep.bench.base).exit_code == InterruptedRun.exit_code
    with sweep_lock(folder, is_shared=False):
        assert [x.status for x in list_sweeps(sweep.bench.base)] == ["running"]
    sweep.run()
    assert calls() == []
    assert sweep.table() == table
    assert [x.status for x in list_sweeps(sweep.bench.base)] == ["finished"]


def test_a_search_that_has_tried_the_whole_space_is_finished(sweep):
    pytest.importorskip("optuna")
    sweep.write(SEARCH.replace("min: 4, max: 40", "choices: [4]").replace("[64, 0.128K]", "[64]"))
    sweep.run()
    (summary,) = list_sweeps(sweep.bench.base)
    assert (summary.status, len(summary.cells)) == ("finished", 1)


def test_a_signal_between_two_trials_interrupts_the_search(sweep, monkeypatch):
    """It arrives when the first of four cells is done, so no cell is stopped. `watch` counts the cells to come."""
    pytest.importorskip("optuna")
    sweep.write(SEARCH)
    make_display, titles = sweep.bench.make_display, []

    def make_interrupting():
        display = make_display()
        log_line = display.log_line

        def look(text):
            log_line(text)
            for folder in sweep_folders(sweep.bench.base):  # none before the plan is shown
                titles.append(take_sweep_snapshot(folder, sweep.state(), sweep.bench.base).title)
            if "base_eval: done" in text:
                os.kill(os.getpid(), signal.SIGINT)

        display.log_line = look
        return display

    monkeypatch.setattr(sweep.bench, "make_display", make_interrupting)
    with pytest.raises(InterruptedRun, match=r"^stopped before cell 2 \(cells: 1 finished\); continue with: "):
        sweep.run()
    assert "cell 1/4: 2-pretrain" in titles
