"""The plan of a sweep: every cell, which stages are shared, and the cost of what is not cached."""

from __future__ import annotations

import json

from nanochat.cli.run import main

SWEEP = """\
  over:
    pretrain.optimizer.matrix_lr: [0.01, 0.02, 0.04]
    model.n_layer: [1, 2, 3]
  rank_by: {base_eval.bpb: min}
"""


def test_plan_shows_cells_shared_stages_and_the_total_cost(load, capsys):
    assert main(["plan", str(load(SWEEP).path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "grid: 9 cells, 19 stages (without sharing: 27)"
    assert "   5       0.02        2     7  run     grid-0_02-2" in lines
    stages = [line.split()[:4] for line in lines if line.split()[:1] in (["tokenizer"], ["pretrain"], ["base_eval"])]
    assert stages == [["tokenizer", "1", "1", "9"], ["pretrain", "9", "9", "9"], ["base_eval", "9", "9", "9"]]
    assert any(line.startswith("total             19      19") for line in lines)
    together = "  - time is that of all stages one after another; less if several cells run at a time"
    assert together not in lines
    assert main(["plan", str(load(SWEEP + "  parallel: 2\n").path)]) == 0
    assert together in capsys.readouterr().out.splitlines()


def test_plan_as_json_names_the_cells_of_each_stage_and_adds_up_their_cost(load, capsys):
    assert main(["plan", str(load(SWEEP).path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["cells"] for stage in plan["stages"] if stage["stage"] == "tokenizer"] == [[*range(1, 10)]]
    flops = sum(stage["estimate"]["flops"] or 0 for stage in plan["stages"])
    assert plan["totals"]["flops"] == flops > 0
    assert plan["cells"][4]["values"] == {"pretrain.optimizer.matrix_lr": 0.02, "model.n_layer": 2}


def test_plan_and_check_refuse_a_wrong_cell_with_exit_code_2(load, capsys):
    path = str(load(SWEEP.replace("[1, 2, 3]", "[1, 2, 0]")).path)
    for verb in ("plan", "check"):
        assert main([verb, path]) == 2
        assert f"{path}:20:27" in capsys.readouterr().err


def test_plan_names_inputs_that_are_missing_once(load, folder, capsys):
    path = str(load(SWEEP).path)
    (folder / "text.txt").unlink()
    assert main(["plan", path]) == 3
    assert capsys.readouterr().out.count("text.txt") == 1
