"""The results of a sweep as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from nanochat.runner.scaling_laws.analysis import analyse
from nanochat.runner.scaling_laws.trained_models import TrainedModel
from nanochat.runner.sweeps.results.cell_results import SweepResults, read_sweep_results
from nanochat.runner.sweeps.results.sweep_json import sweep_to_json


def law_points():
    """Two sizes of each budget lose more than the middle one, by the same amount on a logarithmic scale."""
    return [
        TrainedModel(params=n, tokens=c / 6 / n, flops=c, loss=3 - i / 5 + abs(k) / 10 + seed / 1000, seed=seed)
        for i, c in enumerate((6e12, 24e12))
        for k, n in ((-1, 5e4 * 2**i), (0, 1e5 * 2**i), (1, 2e5 * 2**i))
        for seed in range(2)
    ]


def test_json_of_a_sweep_has_the_documented_keys_the_ranking_and_the_law(sweep, check_keys, monkeypatch):
    law = analyse(law_points(), "isoflop")
    monkeypatch.setattr("nanochat.runner.sweeps.results.sweep_json.fit_law", lambda sweep: law)
    folder = sweep.open()
    measured = {"base_eval.bpb": (1.75, 1.5, 1.625)}
    results = [
        replace(result, status="finished", metrics={name: values[i] for name, values in measured.items()})
        for i, result in enumerate(sweep.results())
    ]
    results = SweepResults(folder=folder, state=sweep.state(), cells=tuple(results))
    shown = json.loads(json.dumps(sweep_to_json(results), allow_nan=False))
    assert check_keys("report of a sweep", shown) == set()
    assert [cell["values"] for cell in shown["cells"]] == [{"pretrain.horizon.steps": steps} for steps in (4, 5, 6)]
    (ranking,) = shown["ranking"]
    assert [setting["mean"] for setting in ranking["settings"]] == [1.5, 1.625, 1.75]
    assert [setting["cells"] for setting in ranking["settings"]] == [[2], [3], [1]]
    assert [budget["problem"] for budget in shown["law"]["isoflop"]] == ["", ""]
    assert len(shown["law"]["points"]) == 12


def test_json_of_a_sweep_that_has_not_begun_ranks_nothing(sweep):
    folder = sweep.open()
    shown = sweep_to_json(read_sweep_results(folder, sweep.state(), sweep.bench.base))
    assert shown["ranking"] == [{"result": "base_eval.bpb", "order": "min", "settings": []}]
    assert shown["law"] is None and shown["report"] is None
