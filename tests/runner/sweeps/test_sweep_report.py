"""The report of a sweep, and the recipe of its best setting."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from nanochat.cli.run import main
from nanochat.errors import PreflightError, RecipeError
from nanochat.recipe.schema.sweep_section import Sweep
from nanochat.runner.store.sweep_state import CellEntry
from nanochat.runner.sweeps.results.cell_results import CellResult, SweepResults, group_by_setting, rank
from nanochat.runner.sweeps.results.effects import list_effects
from nanochat.runner.sweeps.results.result_table import show_mean
from nanochat.runner.sweeps.results.sweep_catalog import best_recipe, find_sweep
from nanochat.runner.sweeps.results.sweep_report import sweep_report
from nanochat.runner.upload.build_view import run_view
from nanochat.runner.upload.sweep_view import as_cell


def cell(number, values, seed, loss):
    entry = CellEntry(number=number, values=values, seed=seed, run="r", plan_digest="d", overrides=())
    metrics = {} if loss is None else {"base_eval.bpb": float(loss)}
    return CellResult(entry=entry, run=None, status="finished", metrics=metrics, message="")


def grid():
    """loss = 10 a + b + noise: seed 0 has none, seed 1 adds 0.2 where b is 4."""
    rows = [(a, b, seed) for a in (1, 2) for b in (3, 4) for seed in (0, 1)]
    return [
        cell(n, {"x.a": a, "x.b": b, "x.c": 10 * b}, seed, 10 * a + b + (0.2 if seed and b == 4 else 0))
        for n, (a, b, seed) in enumerate(rows, start=1)
    ]


def test_the_effect_of_a_field_is_its_mean_over_the_others_with_its_spread_over_seeds():
    """By hand: a=1 has 13, 14 with seed 0 and 13, 14.2 with seed 1, so means of 13.5 and 13.6 over seeds."""
    first, second = list_effects(grid(), "base_eval.bpb")
    assert first.paths == ("x.a",)
    assert [level.mean for level in first.levels] == pytest.approx([13.55, 23.55])
    assert [level.spread for level in first.levels] == pytest.approx([0.1 / 2**0.5] * 2)
    assert second.paths == ("x.b", "x.c")
    assert [level.label for level in second.levels] == ["3, 30", "4, 40"]
    assert [level.mean for level in second.levels] == pytest.approx([18, 19.1])
    assert [level.spread for level in second.levels] == pytest.approx([0, 0.2 / 2**0.5])
    assert first.is_balanced and second.is_balanced


def test_zipped_fields_have_one_effect_and_missing_cells_are_remarked():
    """The two widths of one depth are two values: neither field alone says which. Of a=1, the cells with b=4 failed."""
    shapes = [(2, 64), (1, 32), (1, 64)]
    results = [cell(n, {"m.layers": a, "m.width": b}, 0, float(n)) for n, (a, b) in enumerate(shapes, start=1)]
    (effect,) = list_effects(results, "base_eval.bpb", zipped=("m.layers", "m.width"))
    assert [(level.label, level.mean) for level in effect.levels] == [("1, 32", 2), ("1, 64", 3), ("2, 64", 1)]
    assert effect.is_balanced
    broken = [x for x in grid() if (x.entry.values["x.a"], x.entry.values["x.b"]) != (1, 4)]
    assert not any(effect.is_balanced for effect in list_effects(broken, "base_eval.bpb"))
    state = SimpleNamespace(name="n", description="", command="c", section=Sweep(rank_by={"base_eval.bpb": "min"}))
    reports = [sweep_report(SweepResults(folder=None, state=state, cells=x), plots=()) for x in (broken, grid())]
    assert [text.count("These values were not all tried with the same values") for text in reports] == [2, 0]


def test_settings_are_ranked_by_their_mean_and_a_diverged_seed_takes_a_setting_out():
    results = grid()
    assert [s.values["x.b"] for s in rank(group_by_setting(results), "base_eval.bpb", "min")] == [3, 4, 3, 4]
    assert [s.values["x.a"] for s in rank(group_by_setting(results), "base_eval.bpb", "max")] == [2, 2, 1, 1]
    best = rank(group_by_setting(results), "base_eval.bpb", "min")[1]
    assert show_mean(best, "base_eval.bpb") == "14.1 ± 0.14 (2 seeds)"
    results[0] = cell(1, results[0].entry.values, 0, None)
    results[2] = cell(3, results[2].entry.values, 0, float("nan"))
    ranked = rank(group_by_setting(results), "base_eval.bpb", "min")
    assert [(s.values["x.a"], s.values["x.b"]) for s in ranked] == [(2, 3), (2, 4)]


def test_the_report_the_mlflow_views_and_the_best_recipe_of_a_sweep(sweep, calls):
    """The best recipe runs on its own: its cell is cached, and stages after `until` run."""
    with pytest.raises(RecipeError, match="no sweep `tiny`"):
        find_sweep("tiny", sweep.bench.base)
    sweep.open()
    with pytest.raises(PreflightError, match=r"no setting of the sweep tiny/.* has `base_eval.bpb`"):
        best_recipe("tiny", sweep.bench.base)
    sweep.bench.control(varies="yes")
    folder = sweep.run()
    bpb = [result.metrics["base_eval.bpb"] for result in sweep.results()]
    report = folder.report.read_text()
    assert "3 cells: 3 finished." in report
    winner = 4 + bpb.index(min(bpb))
    assert f"| 1 | {winner} | {min(bpb):.6g} |" in report
    assert report.count("| finished |") == 3
    assert folder.report_page.is_file()
    calls()
    view = run_view(sweep.results()[1].run.folder, sweep.bench.base)
    assert view.params == {"steps": "5"}  # these and the first metric are where MLflow's charts begin
    assert next(iter(view.metrics.items())) == ("base_eval/bpb", bpb[1])
    assert (view.tags["sweep"], view.tags["seed"]) == (f"tiny/{folder.path.name}", "42")
    assert (view.parent.name, view.parent.link) == ("tiny", folder.link)
    early = replace(view, status="RUNNING", metrics={"tokenizer/vocab_size": 300.0})
    assert as_cell(early, sweep.results()[1].run.state, sweep.bench.base, tags={}).metrics == {}
    text = best_recipe("tiny", sweep.bench.base)
    assert text.startswith(f"# The best of 3 settings of the sweep tiny/{folder.path.name}, by base_eval.bpb (min): ")
    (sweep.bench.folder / "elsewhere").mkdir()
    sweep.bench.recipe = sweep.bench.folder / "elsewhere" / "best.yaml"
    sweep.bench.recipe.write_text(text)
    run = sweep.bench.run()
    assert run.state.name == "tiny_best"
    assert calls() == ["sft", "chat_eval"]


def test_a_sweep_without_ranking_has_no_best_recipe(sweep):
    sweep.write("sweep: {over: {model.n_layer: [1, 2]}}\n")
    sweep.open()
    with pytest.raises(RecipeError, match=r"add `sweep\.rank_by`"):
        best_recipe("tiny", sweep.bench.base)
    with pytest.raises(RecipeError, match="did you mean `tiny`"):
        best_recipe("tinny", sweep.bench.base)


def test_damaged_sweep_is_named_with_its_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    state = tmp_path / "sweeps" / "rates" / "20260101-000000" / "sweep.json"
    state.parent.mkdir(parents=True)
    state.write_text("{")
    for command in (["report"], ["report", "--json"], ["watch"], ["compare"], ["best"]):
        assert main([command[0], "rates", *command[1:]]) == RecipeError.exit_code
        assert f"the sweep `rates` cannot be read: {state} is damaged; run its recipe" in capsys.readouterr().err
    assert main(["ls"]) == 0
    assert f"rates/20260101-000000  damaged  -       {state} is damaged" in capsys.readouterr().out
    assert main(["ls", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["damaged"]
    assert listed["sweep"] == "rates/20260101-000000"
    with pytest.raises(RecipeError, match="no sweep `rates/today`; those of this name are rates/20260101-000000"):
        find_sweep("rates/today", tmp_path)
