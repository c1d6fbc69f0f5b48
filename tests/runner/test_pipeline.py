"""A run skips what is done, continues what was stopped, and ends with the error that says what happened."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from nanochat.errors import (
    ExpectationError,
    InterruptedRun,
    LockError,
    PreflightError,
    RecipeError,
    StageError,
)
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.process.exit_status import StageBugError
from nanochat.runner.store.cache import newest_step
from nanochat.runner.store.locks import stage_lock
from nanochat.runner.store.record import read_record
from nanochat.runner.store.runs import list_runs
from nanochat.storage.layout import stage_folders

ALL = ["tokenizer", "pretrain", "base_eval", "sft", "chat_eval"]


def test_the_same_command_again_runs_nothing_and_shows_the_results(bench):
    """The second time every stage comes from the cache, in the same run folder."""
    first = bench.run()
    assert bench.calls() == ALL
    again = bench.run()
    assert bench.calls() == []
    assert again.folder == first.folder
    assert "nothing to do" in bench.display.text
    assert "chat_eval: from cache" in bench.display.text
    assert "spelling 0.75 ± 0.12 (n 12)" in bench.display.text


def test_a_changed_sft_field_runs_sft_and_chat_eval_only(bench):
    """What does not depend on the field is served from cache."""
    bench.run()
    bench.calls()
    bench.run("sft.horizon.steps=5")
    assert bench.calls() == ["sft", "chat_eval"]
    assert "sft.horizon.steps: 4 -> 5" in bench.display.text


@pytest.mark.parametrize("change", ["name=other", "run.threads=2", "tracking.experiment=else", "description=words"])
def test_what_is_not_identity_runs_nothing(bench, change):
    """Names, execution and tracking are no reason to compute anything."""
    bench.run()
    bench.calls()
    bench.run(change)
    assert bench.calls() == []


def test_a_cached_run_under_another_name_has_a_folder_of_its_own(bench):
    """So that the new name can be talked to and reported on."""
    bench.run()
    other = bench.run("name=other")
    assert other.reference.startswith("other/")
    assert set(other.records(bench.base)) == set(ALL)
    assert (other.folder.stages / "2-pretrain" / "out" / "model").is_dir()


def test_a_forced_stage_runs_again_and_what_follows_is_cached_when_it_came_out_the_same(bench):
    """Upstream digests decide, not the time of the upstream run."""
    first = bench.run()
    bench.calls()
    second = bench.run(force=("pretrain",))
    assert bench.calls() == ["pretrain"]
    assert second.folder != first.folder
    bench.run(force=("all",))
    assert bench.calls() == ALL


def test_selections_run_what_they_say(bench):
    """--until, --only and --from."""
    bench.run(last="pretrain")
    assert bench.calls() == ALL[:2]
    bench.run(only="base_eval")
    assert bench.calls() == ["base_eval"]
    bench.run(first="sft")
    assert bench.calls() == ["sft", "chat_eval"]


def test_a_selection_that_leaves_out_what_it_needs_is_refused(bench):
    """Before anything starts, naming what is missing."""
    with pytest.raises(RecipeError, match="sft needs pretrain"):
        bench.run(only="sft")
    assert bench.calls() == []


@pytest.mark.parametrize(
    ("how", "error", "code", "message"),
    [
        ("fail", StageError, 4, "not finite three times"),
        ("bug", StageBugError, 1, "ZeroDivisionError: division by zero"),
        ("killed", StageError, 4, "out of memory"),
    ],
)
def test_a_failing_stage_ends_the_run_with_its_error(bench, how, error, code, message):
    """Later stages do not run, the run is marked, and the same command begins with the failed stage."""
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


def test_an_out_of_memory_death_names_plan_peak_and_field(bench):
    """The parent outlives the child and says what to change."""
    bench.control(pretrain="killed")
    with pytest.raises(StageError) as caught:
        bench.run("run.micro_batch_size=2")
    assert "planned memory" in str(caught.value) and "measured peak" in str(caught.value)
    assert "run.micro_batch_size: 1` (now 2)" in str(caught.value)


def test_a_shortage_that_the_stage_noticed_is_told_alike(bench):
    """With the peak on the device, which the size of the process does not show; the command ends with 4."""
    bench.control(pretrain="short of memory")
    with pytest.raises(StageError) as caught:
        bench.run("run.micro_batch_size=2")
    said = str(caught.value)
    assert said.startswith("pretrain ran out of memory ([malloc] Unable to allocate 9 bytes.)\n  planned memory ")
    assert "measured peak 3.00 GiB\n" in said and "run.micro_batch_size: 1` (now 2)" in said
    assert caught.value.exit_code == 4


def test_what_a_killed_stage_was_writing_is_no_output(bench):
    """A scratch file that its process left behind is gone, and the digest is that of an undisturbed run."""
    bench.run()
    digest = list_runs(bench.base)[-1].records(bench.base)["pretrain"].output_digest
    shutil.rmtree(bench.base)
    bench.control(pretrain="killed")
    with pytest.raises(StageError):
        bench.run()
    folder = next((bench.base / "stages" / "pretrain").iterdir())
    (folder / "out" / "tables").mkdir(parents=True)
    (folder / "out" / "tables" / ".writing-123-spelling.jsonl").write_text("half")
    bench.control()
    record = bench.run().records(bench.base)["pretrain"]
    assert record.output_digest == digest
    assert not any(".writing" in path for path in record.output_files)


def test_what_a_stage_wants_known_is_shown(bench):
    """Whole lines of its log that are marked so, once, and nothing else of the log."""
    bench.control(pretrain="tells")
    bench.run()
    shown = [line for line in bench.display.lines if line.startswith("2-pretrain: ")]
    assert shown[0] == "2-pretrain: runs, not computed yet"
    assert shown[1:-1] == ["2-pretrain: step_00000008 is damaged"]


def test_a_signal_stops_the_child_once_and_the_same_command_resumes(bench):
    """The run is marked interrupted, one line says what was saved and how to go on."""
    bench.control(pretrain="wait")
    request = bench.request()
    sent = []

    def once():
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    bench.display.on_beat = once
    with pytest.raises(InterruptedRun) as caught:
        run_recipe(request, bench.display)
    assert str(caught.value) == "2-pretrain: saved at step 2 of 4; continue with: nanochat-run tiny.yaml"
    run = list_runs(bench.base)[-1]
    assert (run.state.status, run.state.entry("pretrain").status) == ("interrupted", "interrupted")
    bench.control()
    assert bench.run().folder == run.folder
    assert "2-pretrain: resumes" in bench.display.text


def test_a_stage_that_fails_while_it_is_asked_to_stop_is_a_failure(bench):
    """A save on Ctrl-C that meets a full disk must not be called saved."""
    bench.control(pretrain="spiteful")
    bench.display.on_beat = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(StageError, match="no space left"):
        run_recipe(bench.request(), bench.display)
    assert list_runs(bench.base)[-1].state.status == "failed"


def test_a_second_signal_kills_a_child_that_does_not_stop(bench):
    """And the run still ends as interrupted."""
    bench.control(pretrain="stubborn")
    bench.display.on_beat = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(InterruptedRun, match=r"^2-pretrain: stopped, nothing is saved yet; continue with: "):
        run_recipe(bench.request(), bench.display)
    assert list_runs(bench.base)[-1].state.status == "interrupted"


def test_a_report_that_cannot_be_written_does_not_hide_why_the_stage_failed(bench, monkeypatch):
    """The failure of the report is shown, and the error of the stage is raised."""

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanochat.runner.pipeline.write_report", fail)
    bench.control(pretrain="fail")
    with pytest.raises(StageError, match="not finite three times"):
        bench.run()
    assert "the report could not be written: OSError: [Errno 28] No space left on device" in bench.display.lines


def test_an_unmet_expectation_fails_the_run_also_from_cache(bench):
    """Exit code 5, with the value; the stages stay done."""
    for _ in range(2):
        with pytest.raises(ExpectationError, match=r"base_eval.bpb <= 1.4: 1.5000, NOT MET"):
            bench.run('expect={"base_eval.bpb": "<= 1.4"}')
    assert bench.calls() == ALL
    bench.run('expect={"base_eval.bpb": "<= 1.6"}')


def test_a_stage_that_another_run_holds_is_refused(bench):
    """Exit code 6 naming host and pid, before a run folder is made."""
    bench.run()
    folder = next(f for f in stage_folders(bench.base) if f.stage == "sft")
    with stage_lock(folder), pytest.raises(LockError, match=f"pid {os.getpid()}"):
        bench.run(force=("sft",))
    assert len(list_runs(bench.base)) == 1


def test_missing_data_and_disk_are_told_together(bench, monkeypatch):
    """Preflight collects its findings."""
    from nanochat.runner.preflight import checks as preflight

    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(PreflightError) as caught:
        bench.run("run.limits.memory=1M", "run.micro_batch_size=2")
    text = str(caught.value)
    assert "disk: the plan needs" in text and "memory: pretrain needs about" in text
    (bench.folder / "text.txt").unlink()
    with pytest.raises(PreflightError, match="no such file"):
        bench.run()
    assert bench.calls() == []


def test_records_hold_inputs_outputs_and_costs(bench):
    """What proves a stage is also what explains it."""
    run = bench.run()
    record = run.records(bench.base)["sft"]
    pretrain = run.records(bench.base)["pretrain"]
    assert record.document["upstream"] == {"pretrain": pretrain.output_digest}
    assert record.device == "pretend"
    assert "timings.json" not in record.output_files
    assert "out/model" not in record.output_files and "model/config.json" in record.output_files
    assert record.measured.seconds > 0 and record.planned.peak_memory_bytes > 0


def test_a_stage_without_a_record_is_not_done_whatever_else_is_there(bench):
    """Only the record counts."""
    run = bench.run()
    bench.calls()
    folder = next(f for f in stage_folders(bench.base) if f.stage == "base_eval")
    folder.record.unlink()
    bench.run()
    assert bench.calls() == ["base_eval"]
    assert read_record(folder) is not None
    assert newest_step(folder) is None
    assert list_runs(bench.base)[-1].folder == run.folder


def test_the_report_holds_results_with_errors_and_chance(bench):
    """Value, standard error, number of problems and the chance level solved from the centred score."""
    report = bench.run().folder.report.read_text()
    assert "| chat_eval | spelling | 0.75 | 0.125 | 12 | 0.5 |" in report
