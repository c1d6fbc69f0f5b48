"""Tests that runs and models are found by the names that people use, and that plans explain changes."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from nanochat.cli.run import main
from nanochat.errors import RecipeError, StageError
from nanochat.runner.preflight.plan_report import explain_stage, explain_stage_text, plan_report_json
from nanochat.runner.preflight.prepare import select_stages
from nanochat.runner.report.comparison import compare_runs, render_comparison
from nanochat.runner.store.locks import stage_lock
from nanochat.runner.store.provenance import host_name
from nanochat.runner.store.run_catalog import find_run, list_runs, resolve_model
from nanochat.runner.store.verification import model_to_start_from
from nanochat.storage.layout import stage_folders


def test_find_run_accepts_name_time_and_folder(finished):
    """A bare name refers to the latest run."""
    run = finished.first
    for reference in ("tiny", run.reference, str(run.folder.path)):
        assert find_run(reference, finished.base).folder == run.folder
    with pytest.raises(RecipeError, match="did you mean `tiny`"):
        find_run("tny", finished.base)


def test_ls_lists_no_count_of_what_was_skipped_as_a_result(bench, capsys):
    bench.run("base_eval=null", last="sft")
    assert main(["ls"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("  sft.train/loss 2")


def test_resolve_model_says_that_a_sweep_is_not_one_model(bench):
    bench.run(last="tokenizer")
    (bench.base / "sweeps/rates/20260101-000000").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"`rates` is a sweep .* one cell \(`nanochat-run report rates` ranks them\)"):
        resolve_model("rates", bench.base)


def test_the_latest_run_is_the_one_created_last_whatever_its_folder_is_called(finished):
    """Folders are named in local time. A container in UTC, or a clock that goes back an hour, mixes up their order."""
    first = finished.first
    second = finished.run("sft.horizon.steps=5")
    renamed = first.folder.path.rename(first.folder.path.with_name("20990101-000000"))
    assert find_run("tiny", finished.base).folder == second.folder
    assert [run.folder.path for run in list_runs(finished.base)] == [renamed, second.folder.path]
    assert finished.run("sft.horizon.steps=5").folder == second.folder


def replace_by_folder(state: Path) -> None:
    state.unlink()
    state.mkdir()


DAMAGES = {
    "empty": lambda state: state.write_bytes(b""),
    "cut": lambda state: state.write_bytes(state.read_bytes()[:-100]),
    "other bytes": lambda state: state.write_bytes(b"\xff" + state.read_bytes()),
    "other type": lambda state: state.write_text("[]"),
    "wrong condition": lambda state: state.write_text(state.read_text().replace('"<= 9"', '"<~ 9"')),
    "stage of a later version": lambda state: state.write_text(state.read_text().replace('"sft"', '"distill"')),
    "time that is none": lambda state: state.write_text(
        re.sub('"created": [0-9.]+', '"created": 1e300', state.read_text())
    ),
    "missing": Path.unlink,
    "folder": replace_by_folder,
}


def test_a_run_with_a_damaged_state_is_listed_and_never_replaced_by_an_older_one(bench, monkeypatch, capsys):
    """`ls` names its file, and so does every command that would use it. Nothing is collected meanwhile."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(bench.base))
    older = bench.run("expect={pretrain.bpb: '<= 9'}", "pretrain.horizon.steps=3", last="tokenizer")
    run = bench.run("expect={pretrain.bpb: '<= 9'}", "name=tiny", last="tokenizer", force=("tokenizer",))
    content = run.folder.state.read_bytes()
    for name, damage in DAMAGES.items():
        run.folder.state.write_bytes(content)
        damage(run.folder.state)
        assert main(["ls"]) == 0
        listed = [line for line in capsys.readouterr().out.splitlines() if " damaged " in line]
        assert len(listed) == 1 and listed[0].startswith(run.reference) and str(run.folder.state) in listed[0], name
        problem = "is missing" if name == "missing" else "cannot be read"
        for reference in ("tiny", run.reference, str(run.folder.path)):
            with pytest.raises(RecipeError, match=f"run.json {problem}"):
                find_run(reference, bench.base)
        assert find_run(older.reference, bench.base).folder == older.folder
        assert main(["gc"]) == 3
        assert str(run.folder.state) in capsys.readouterr().err
    shutil.rmtree(run.folder.path)
    assert find_run("tiny", bench.base).folder == older.folder


def test_resolve_model_prefers_the_sft_model_of_a_run(bench):
    run = bench.run(last="pretrain")
    pretrained = resolve_model("tiny", bench.base)
    assert pretrained.parts[-4] == "pretrain"
    bench.run()
    assert resolve_model("tiny", bench.base).parts[-4] == "sft"
    assert resolve_model(str(run.folder.path), bench.base).parts[-4] == "sft"
    assert resolve_model("tiny", bench.base, prefer=("pretrain", "sft")) == pretrained
    assert resolve_model(run.reference, bench.base).parts[-4] == "sft"
    assert resolve_model(str(pretrained), bench.base) == pretrained
    assert resolve_model(str(pretrained.parents[1]), bench.base) == pretrained


def test_init_from_a_run_uses_the_model_that_the_stage_needs(finished):
    """SFT and base evaluation start from the pretrained model, chat evaluation from the tuned one."""
    from_run = [f"{stage}.init_from=tiny" for stage in ("base_eval", "sft", "chat_eval")]
    gone = ("tokenizer=null", "model=null", "pretrain=null", "base_eval.suites.bpb.source=text")
    finished.run(*from_run, *gone, "sft.tokens_per_step=64", "name=other")
    specs = [json.loads(folder.job.read_text())["spec"] for folder in stage_folders(finished.base)]
    started = {spec["stage"]: Path(spec["init_from"]).parts[-4] for spec in specs if spec.get("init_from")}
    assert started == {"base_eval": "pretrain", "sft": "pretrain", "chat_eval": "sft"}


def test_init_from_is_identified_by_the_content_of_the_model(finished, tmp_path):
    """A copy of the same files in another folder is the same computation."""
    model = resolve_model("tiny", finished.base)
    copy = shutil.copytree(model, tmp_path / "copy")
    one, other = (model_to_start_from(folder, finished.base, with_optimizer=True) for folder in (model, copy))
    assert one.digest == other.digest
    finished.run(f"sft.init_from={model}", "name=a")
    finished.calls()
    finished.run(f"sft.init_from={copy}", "name=b")
    assert finished.calls() == []


def test_explain_stage_names_the_changed_field_before_anything_runs(finished):
    """It does so for later stages too, whose inputs are not known yet."""
    prepared = finished.prepare("sft.horizon.steps=5")
    lookups = prepared.look_up_cache()
    assert "sft.horizon.steps: 4 -> 5" in explain_stage_text(explain_stage(prepared, lookups, "sft"))
    assert "sft: run, changed: sft.horizon.steps: 4 -> 5" in explain_stage_text(
        explain_stage(prepared, lookups, "chat_eval")
    )
    report = plan_report_json(prepared, lookups, select_stages(prepared.plan))
    assert [stage["status"] for stage in report["stages"]] == ["cached", "cached", "cached", "run", "run"]


def test_explain_stage_lists_several_changes_once(finished):
    prepared = finished.prepare("sft.horizon.steps=5", "sft.tokens_per_step=128")
    text = explain_stage_text(explain_stage(prepared, prepared.look_up_cache(), "sft"))
    head, *changes = text.splitlines()
    assert head == "sft: run, changed:" and len(changes) >= 2
    assert text.count("sft.horizon.steps: 4 -> 5") == 1
    one = finished.prepare("sft.horizon.steps=5")
    assert explain_stage_text(explain_stage(one, one.look_up_cache(), "sft")) == (
        "sft: run, changed: sft.horizon.steps: 4 -> 5"
    )


def test_a_change_is_explained_against_the_last_run_of_the_same_recipe_alone(bench):
    """Another recipe has more in common with the new one, and computed stages that both use."""
    bench.run("seed=1", "sft.horizon.steps=9", "name=mine")
    bench.run("name=other")
    lookups = {look.stage.name: look for look in bench.prepare("name=third", "seed=2").look_up_cache()}
    assert lookups["pretrain"].reason == "not computed yet"
    bench.run("seed=1", "sft.horizon.steps=7", "name=mine")
    bench.run("name=mine", "seed=1", "sft.horizon.steps=9")  # all of it is cached
    prepared = bench.prepare("name=mine", "seed=1", "sft.horizon.steps=5")
    assert "changed: sft.horizon.steps: 9 -> 5" in explain_stage_text(
        explain_stage(prepared, prepared.look_up_cache(), "sft")
    )


def test_a_stage_that_another_process_computes_is_not_called_interrupted(bench):
    """The stage has a checkpoint, which the other process wrote."""
    with pytest.raises(StageError):
        bench.control(pretrain="killed")
        bench.run()
    folder = bench.stage_folder("pretrain")
    (folder.checkpoints / "step_00000002").mkdir(parents=True)
    with stage_lock(folder):
        reasons = {look.stage.name: look.reason for look in bench.prepare().look_up_cache()}
    assert reasons["pretrain"] == f"process {os.getpid()} on {host_name()} is computing it now"
    assert "interrupted" in {look.stage.name: look.reason for look in bench.prepare().look_up_cache()}["pretrain"]


def test_plan_without_its_data_names_the_missing_input(bench):
    (bench.folder / "text.txt").unlink()
    prepared = bench.prepare()
    assert ["text.txt" in problem for problem in prepared.problems] == [True]
    assert all(j.action == "run" for j in prepared.look_up_cache())


def test_comparison_shows_scores_and_differing_fields(finished):
    """A run without the stage shows neither a score nor a default."""
    runs = [
        finished.first,
        finished.run("sft.horizon.steps=5", "name=longer"),
        finished.run("chat_eval=null", "name=less"),
    ]
    table = render_comparison(compare_runs(runs, finished.base))
    assert "| chat_eval.spelling | 0.75 ± 0.12 (n 12) | 0.75 ± 0.12 (n 12) | - |" in table
    assert "| sft.horizon.steps | 4 | 5 | 4 |" in table
    assert "| chat_eval.suites.spelling.max_problems | 4 | 4 | - |" in table
    assert "pretrain.horizon" not in table


def test_comparison_of_one_run_asks_for_another(finished):
    (remark,) = compare_runs([finished.first], finished.base).remarks
    assert remark == "Name another run to compare it with."


def test_comparison_shows_no_default_of_data_that_a_run_does_not_read(finished):
    """An entry of `data` that gives no field is a default itself."""
    (finished.folder / "more.txt").write_text((finished.folder / "text.txt").read_text() * 2)
    other = finished.run(
        f"sources.more={{path: {finished.folder}/more.txt, max_document_chars: 99}}",
        "pretrain.data={text: null, more: {}}",
        "tokenizer.source=more",
        "base_eval.suites.bpb.source=more",
        "name=other",
    )
    comparison = compare_runs([finished.first, other], finished.base)
    assert comparison.recipe["pretrain.data.text"] == ["default", "-"]
    assert comparison.recipe["pretrain.data.more"] == ["-", "default"]
    assert comparison.recipe["sources.more.max_document_chars"] == ["-", "99"]
