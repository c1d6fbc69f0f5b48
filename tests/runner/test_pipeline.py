"""Tests that a run skips finished stages, resumes interrupted ones, and ends with an error that says what happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

import pytest

from nanochat.errors import ExpectationError, InterruptedRun, LockError, PreflightError, RecipeError, StageError
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.process.exit_status import StageBugError
from nanochat.runner.report.run_summary import describe_unfinished, summarise
from nanochat.runner.store.locks import stage_lock
from nanochat.runner.store.record import read_record
from nanochat.runner.store.run_catalog import list_runs
from nanochat.runner.store.stage_cache import newest_step

ALL = ["tokenizer", "pretrain", "base_eval", "sft", "chat_eval"]


def test_run_again_takes_every_stage_from_the_cache_and_shows_the_results(finished):
    """The second run uses the same run folder. Without sources on a hub there is no lock file."""
    first = finished.first
    assert finished.calls() == ALL
    assert not finished.recipe.with_suffix(".lock").exists()
    again = finished.run()
    assert finished.calls() == []
    assert again.folder == first.folder
    assert "nothing to do" in finished.display.text
    assert "chat_eval: from cache" in finished.display.text
    assert "spelling 0.75 ± 0.12 (n 12)" in finished.display.text


def test_run_with_nothing_to_do_warns_of_a_field_without_effect(finished):
    """The base recipe gives `n_layer`, so that `--set model.depth=8` changes nothing."""
    finished.run("model.depth=8")
    assert "nothing to do" in finished.display.text
    assert "warning: --set model.depth=8: `model.depth` has no effect beside" in finished.display.text


def test_run_warns_of_notes_that_are_not_read_also_if_every_stage_is_cached(bench):
    (bench.folder / "chats").mkdir()
    (bench.folder / "chats.jsonl").rename(bench.folder / "chats/a.jsonl")
    (bench.folder / "chats/note.md").write_text("not a chat")
    for shown in ("\nwarnings\n  - {}", "warning: {}"):
        bench.run(f"sources.chats.path={bench.folder}/chats")
        warning = "source `chats`: 1 file with text or rows is not read: note.md; `left out` in the plan says why"
        assert shown.format(warning) in bench.display.text


def test_run_ends_with_the_command_to_try_its_model(bench):
    """A model that has only been pretrained continues texts. A tokenizer alone is no model."""
    commands = []
    for last in ("tokenizer", "base_eval", "chat_eval", "chat_eval"):
        bench.run(last=last)
        commands.append([line for line in bench.display.lines if "nanochat-chat" in line])
    answers = ["try the model: nanochat-chat tiny"]
    assert commands == [[], ["try the model: nanochat-chat tiny --raw"], answers, answers]


def test_plan_says_that_a_stage_may_be_cached_only_if_one_was_computed(bench):
    bench.run()
    assert "run: after pretrain\n" in bench.display.text and "is known then" not in bench.display.text
    bench.run("seed=7")
    assert "run: after pretrain; whether it is cached is known then" in bench.display.text


def test_changed_field_runs_only_the_stages_that_depend_on_it(finished):
    """Name, execution, tracking and description decide no result."""
    finished.calls()
    for change in ("name=other", "run.threads=2", "tracking.experiment=else", "description=words"):
        finished.run(change)
        assert finished.calls() == []
    finished.run("sft.horizon.steps=5")
    assert finished.calls() == ["sft", "chat_eval"]
    assert "sft.horizon.steps: 4 -> 5" in finished.display.text


def test_cached_run_with_a_new_name_gets_its_own_folder(finished):
    """Users can chat with the model and read the report under the new name."""
    other = finished.run("name=other")
    assert other.reference.startswith("other/")
    assert set(other.records(finished.base)) == set(ALL)
    assert (other.folder.stages / "2-pretrain" / "out" / "model").is_dir()


def test_forced_stage_runs_again_and_later_stages_stay_cached_if_its_output_is_equal(finished):
    first = finished.first
    finished.calls()
    second = finished.run(force=("pretrain",))
    assert finished.calls() == ["pretrain"]
    assert second.folder != first.folder
    finished.run(force=("all",))
    assert finished.calls() == ALL


def test_selection_runs_only_the_selected_stages(bench):
    """These are the options --until, --only and --from. A selection without a needed stage is refused."""
    with pytest.raises(RecipeError, match="sft needs pretrain"):
        bench.run(only="sft")
    bench.run(last="pretrain")
    assert bench.calls() == ALL[:2]
    bench.run(only="base_eval")
    assert bench.calls() == ["base_eval"]
    bench.run(first="sft")
    assert bench.calls() == ["sft", "chat_eval"]
    with pytest.raises(RecipeError, match="--only sft and --from sft --until sft cannot both be followed"):
        bench.run(only="sft", first="sft", last="sft")


@pytest.mark.parametrize(
    ("how", "error", "code", "message"),
    [
        ("fail", StageError, 4, "not finite three times"),
        ("bug", StageBugError, 1, "ZeroDivisionError: division by zero"),
        ("killed", StageError, 4, "out of memory"),
    ],
)
def test_failing_stage_ends_the_run_with_its_error(bench, how, error, code, message):
    """Later stages do not run, the run is marked as failed, and the same command starts with the failed stage."""
    bench.control(pretrain=how)
    with pytest.raises(error, match=message) as caught:
        bench.run()
    assert caught.value.exit_code == code
    assert bench.calls() == ["tokenizer", "pretrain"]
    run = list_runs(bench.base)[-1]
    assert (run.state.status, run.state.entry("pretrain").status) == ("failed", "failed")
    bench.control()
    assert bench.run().folder == run.folder
    assert bench.calls() == ALL[1:]


@pytest.mark.parametrize(
    ("how", "first", "peak"),
    [
        ("killed", "the process of pretrain died of SIGKILL: out of memory", ""),
        ("out of memory", "pretrain ran out of memory ([malloc] Unable to allocate 9 bytes.)\n", "3.00 GiB\n"),
    ],
)
def test_out_of_memory_is_reported_with_planned_and_measured_memory_and_the_field_to_change(bench, how, first, peak):
    """If the stage noticed it, the measured peak is that of the device, not of the process."""
    bench.control(pretrain=how)
    with pytest.raises(StageError) as caught:
        bench.run("run.micro_batch_size=2")
    message = str(caught.value)
    assert message.startswith(first) and "\n  planned memory " in message
    assert f"measured peak {peak}" in message and "run.micro_batch_size: 1` (now 2)" in message
    assert caught.value.exit_code == 4


def test_scratch_files_of_a_killed_stage_are_not_part_of_its_output(finished):
    """The output digest equals that of a run that was not killed."""
    digest = list_runs(finished.base)[-1].records(finished.base)["pretrain"].output_digest
    shutil.rmtree(finished.base)
    finished.control(pretrain="killed")
    with pytest.raises(StageError):
        finished.run()
    folder = next((finished.base / "stages" / "pretrain").iterdir())
    (folder / "out" / "tables").mkdir(parents=True)
    (folder / "out" / "tables" / ".writing-123-spelling.jsonl").write_text("half")
    finished.control()
    record = finished.run().records(finished.base)["pretrain"]
    assert record.output_digest == digest
    assert not any(".writing" in path for path in record.output_files)


def test_data_that_change_during_the_run_are_not_used_under_the_digest_of_the_plan(bench):
    """The stage would be recorded, and later be found, as one that read the old data."""
    bench.control(tokenizer="edits the data")
    with pytest.raises(PreflightError, match=r"source `text` \(.*text.txt\) has changed since this run began"):
        bench.run()
    bench.control()
    bench.run()
    assert bench.calls() == ["tokenizer", *ALL]


def test_a_folder_that_is_moved_while_its_stage_runs_is_named(bench):
    """The same command computes the stage again."""
    bench.control(pretrain="loses its folder")
    with pytest.raises(StageError, match=r"stages/pretrain/\w+ was deleted or moved while pretrain ran"):
        bench.run()
    bench.control()
    bench.run()
    assert bench.calls() == ["tokenizer", "pretrain", *ALL[1:]]


def test_notes_in_the_log_of_a_stage_are_shown_once(bench):
    """Other lines and incomplete lines are not shown."""
    bench.control(pretrain="notes")
    bench.run()
    shown = [line for line in bench.display.lines if line.startswith("2-pretrain: ")]
    assert shown[0] == "2-pretrain: runs, not computed yet"
    assert shown[1:-1] == ["2-pretrain: step_00000008 is damaged"]


def test_a_note_on_data_is_shown_for_the_first_stage_that_reads_them(bench):
    """What else a later stage notes is shown, also in the same words."""
    bench.control(tokenizer="notes on data", pretrain="notes on data")
    bench.run(last="pretrain")
    notes = [line for line in bench.display.lines if "left out" in line or "damaged" in line]
    assert notes == [
        "1-tokenizer: text: 1 file; left out: a.pdf",
        "1-tokenizer: step_00000008 is damaged",
        "2-pretrain: step_00000008 is damaged",
    ]


def test_a_stage_works_in_the_base_folder_of_its_run(bench, tmp_path, monkeypatch):
    """`nanochat.run` may be given another one than that of the environment."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "another"))
    write = f"import os; open({str(tmp_path / 'base.txt')!r}, 'w').write(os.environ['NANOCHAT_BASE_DIR']); os._exit(4)"
    bench.child_command = (sys.executable, "-S", "-c", write)
    with pytest.raises(StageError):
        bench.run()
    assert (tmp_path / "base.txt").read_text() == str(bench.base)


def test_signal_stops_the_stage_and_the_same_command_resumes_it(bench):
    """The run is marked as interrupted, and one line says what was saved and how to continue."""
    bench.control(pretrain="wait")
    bench.interrupt()
    with pytest.raises(InterruptedRun) as caught:
        run_recipe(bench.load(), bench.request(), bench.display)
    assert str(caught.value) == "2-pretrain: stopped at step 2; suite a is kept; continue with: nanochat-run tiny.yaml"
    run = list_runs(bench.base)[-1]
    assert (run.state.status, run.state.entry("pretrain").status) == ("interrupted", "interrupted")
    how = "It ended with: 2-pretrain: stopped at step 2; suite a is kept. Continue it with `nanochat-run tiny.yaml`"
    assert str(describe_unfinished(summarise(run, bench.base))).endswith(how)
    bench.control()
    assert bench.run().folder == run.folder
    assert "2-pretrain: resumes" in bench.display.text


@pytest.mark.parametrize(
    ("how", "times", "error", "message", "status"),
    [
        ("fails on signal", 1, StageError, "no space left", "failed"),
        (
            "ignores signals",
            2,
            InterruptedRun,
            "^2-pretrain: stopped, nothing is saved yet; continue with: ",
            "interrupted",
        ),
    ],
)
def test_signal_to_a_stage_that_cannot_save_claims_nothing_saved(bench, how, times, error, message, status):
    """The disk may be full when Ctrl-C asks for a checkpoint. The second signal kills a stage that does not stop."""
    bench.control(pretrain=how)
    bench.interrupt(times=times)
    with pytest.raises(error, match=message):
        run_recipe(bench.load(), bench.request(), bench.display)
    assert list_runs(bench.base)[-1].state.status == status


def test_unmet_expectation_fails_the_run_even_if_all_stages_are_cached(bench):
    for _ in range(2):
        with pytest.raises(ExpectationError) as unmet:
            bench.run('expect={"base_eval.bpb": "<= 1.4", "chat_eval.spelling": ">= 0.7"}')
        assert str(unmet.value) == "expectation not met: base_eval.bpb <= 1.4: 1.5000"
        shown = [line for line in bench.display.text.splitlines() if line.startswith("expected ")]
        assert shown == ["expected chat_eval.spelling >= 0.7: 0.7500, met"], "the other is in the error"
        bench.display = bench.make_display()
    assert bench.calls() == ALL
    bench.run('expect={"base_eval.bpb": "<= 1.6"}')


def test_stage_locked_by_another_run_is_refused_before_a_run_folder_is_made(finished):
    with stage_lock(finished.stage_folder("sft")), pytest.raises(LockError, match=f"pid {os.getpid()}"):
        finished.run(force=("sft",))
    assert len(list_runs(finished.base)) == 1


def test_records_and_report_hold_inputs_outputs_costs_and_results(finished):
    run = finished.first
    report = run.folder.report.read_text()
    assert "| chat_eval | spelling | 0.75 | 0.125 | 12 | 0.5 |" in report
    assert "| base_eval bpb | 1.5 |  | 71,254 tokens |" in report
    record = run.records(finished.base)["sft"]
    pretrain = run.records(finished.base)["pretrain"]
    assert record.document["upstream"] == {"pretrain": pretrain.output_digest}
    assert record.device == "pretend"
    assert "timings.json" not in record.output_files
    assert "out/model" not in record.output_files and "model/config.json" in record.output_files
    assert record.measured.seconds > 0 and record.planned.peak_memory_bytes > 0


def test_stage_without_a_record_runs_again(bench):
    """Only the record proves that a stage is finished, whatever else its folder holds."""
    run = bench.run()
    bench.calls()
    folder = bench.stage_folder("base_eval")
    folder.record.unlink()
    bench.run()
    assert bench.calls() == ["base_eval"]
    assert read_record(folder) is not None
    assert newest_step(folder) is None
    assert list_runs(bench.base)[-1].folder == run.folder


def test_export_that_answers_otherwise_ends_with_exit_code_5_and_is_not_finished(bench):
    """The same command tries again."""
    export = "export={formats: {mlx: {}}}"
    bench.control(export="differs")
    with pytest.raises(ExpectationError, match="answers otherwise"):
        bench.run(export)
    bench.control()
    bench.calls()
    bench.run(export)
    assert bench.calls() == ["export"]


def test_export_gets_the_origin_of_its_model_and_follows_the_scores(bench):
    """Another evaluation changes the model card, so the stage runs again."""
    export = "export={formats: {mlx: {}}}"
    run = bench.run(export)
    (folder,) = (bench.base / "stages" / "export").iterdir()
    origin = json.loads((folder / "job.json").read_text())["origin"]
    assert re.search(r"\| chat_eval spelling \| 0\.750? \| 0\.125 \| 12 \| 0\.5 \|", origin)
    assert "    name: tiny" in origin and "## Data" in origin
    assert "**export** wrote the model for other programs" in run.folder.report.read_text()
    bench.calls()
    bench.run(export, "base_eval.suites.bpb.tokens=32")
    assert bench.calls() == ["base_eval", "export"]
