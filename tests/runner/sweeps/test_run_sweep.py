"""A sweep runs its cells as ordinary runs: stages are shared, a failure stays alone, and a stopped sweep continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest

from nanochat.cli.run import main
from nanochat.cli.verbs import watch_commands
from nanochat.errors import ExpectationError, InterruptedRun, LockError, NanochatError, PreflightError, StageError
from nanochat.runner.store.locks import is_locked, run_lock, sweep_lock
from nanochat.runner.store.run_catalog import list_runs
from nanochat.runner.sweeps.running import cell_runner
from nanochat.runner.sweeps.running.cell_runner import CellFailure, raise_worst
from nanochat.storage.layout import sweep_folders

CELL = ["pretrain", "base_eval"]


def check_commands(sweep, check_keys, monkeypatch, capsys):
    """`ls`, `compare` and `watch` understand the name of a sweep whose three cells are finished."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(sweep.bench.base))
    bpb = [result.metrics["base_eval.bpb"] for result in sweep.results()]
    best, reference = bpb.index(min(bpb)), sweep.results()[0].run.state.sweep

    def output_of(*arguments):
        capsys.readouterr()
        assert main([*arguments]) == 0
        return capsys.readouterr().out

    (row,) = [line for line in output_of("ls").splitlines() if line.startswith(f"{reference} ")]
    assert row.split()[1] == "finished"
    assert row.endswith(f"sweep of 3 cells; best base_eval.bpb {min(bpb):.6g}: steps {4 + best}")
    (listed,) = json.loads(output_of("ls", "--json"))["sweeps"]
    assert check_keys("sweep in ls", listed) == set()
    assert (listed["cells"], listed["finished"], listed["best"]["cells"]) == (3, 3, [best + 1])
    assert output_of("watch", "tiny").startswith(f"{reference}: cells: 3 finished\nfinished: sweep of 3 cells; best ")
    compared = json.loads(output_of("compare", reference, "--json"))
    assert compared["runs"] == [result.run.reference for result in sweep.results()]
    assert "Not finished" not in (text := output_of("compare", reference))
    for run in compared["runs"]:
        assert f"Only in part: {run} was to run 3 of 5 stages, without sft and chat_eval. Its command was `" in text


def test_cells_share_stages_are_ranked_and_are_served_from_the_cache_alone_and_together(
    sweep, calls, check_keys, monkeypatch, capsys
):
    sweep.bench.control(varies="yes")
    folder = sweep.run()
    assert calls() == ["tokenizer", *CELL, *CELL, *CELL]
    assert "chat_eval" not in sweep.bench.display.text
    table, bpb = sweep.table(), [result.metrics["base_eval.bpb"] for result in sweep.results()]
    rows = [line.split() for line in table[2:5]]
    assert [row[:4] for row in rows] == [[str(n), str(3 + n), "42", "finished"] for n in (1, 2, 3)]
    assert [float(row[4]) for row in rows] == pytest.approx(bpb, rel=1e-5)
    assert len(set(bpb)) == 3
    assert table[6].endswith(f": steps {4 + bpb.index(min(bpb))}")
    assert sweep.run() == folder
    assert sweep.table() == table
    folders = {run.folder for run in list_runs(sweep.bench.base)}
    alone = sweep.bench.run(*sweep.state().cells[2].overrides, last="base_eval")
    assert alone.folder in folders
    assert alone.state.sweep == f"tiny/{folder.path.name}"
    sweep.bench.run("sweep=null", "name=other", "pretrain.horizon.steps=6", last="base_eval")
    assert calls() == []
    check_commands(sweep, check_keys, monkeypatch, capsys)


def test_a_cell_that_diverges_fails_alone_and_is_tried_again_by_the_next_command(sweep, calls):
    sweep.bench.control(pretrain="fail", only='"steps": 5')
    with pytest.raises(StageError) as caught:
        sweep.run()
    assert caught.value.exit_code == 4
    assert str(caught.value).splitlines()[0] == "1 of 3 cells did not succeed; the results of the others are kept:"
    assert str(caught.value).splitlines()[1].startswith("  cell 2: the loss was not finite")
    assert [result.status for result in sweep.results()] == ["finished", "failed", "finished"]
    assert sweep.table()[3].split() == ["2", "5", "42", "failed", "-", "-"]
    calls()
    sweep.bench.control()
    sweep.run()
    assert calls() == CELL


def test_watch_ends_at_once_with_the_exit_code_of_a_failed_sweep(sweep, monkeypatch, capsys):
    """Cells that wait, because of `--fail-fast`, change nothing."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(sweep.bench.base))
    sweep.bench.control(pretrain="fail")
    with pytest.raises(StageError):
        sweep.run(stops_at_failure=True)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it looks twice"))
    assert main(["watch", "tiny"]) == StageError.exit_code
    assert capsys.readouterr().out.splitlines()[-1] == "failed: sweep of 3 cells"
    assert main(["watch", "tiny", "--once"]) == 0


def test_watch_follows_a_sweep_between_two_cells_while_a_command_runs_it(sweep, monkeypatch):
    """Without one it looks four times, because a scheduler may start another command for the next cell."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(sweep.bench.base))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with ExitStack() as commands:
        for _ in range(2):
            commands.enter_context(sweep_lock(sweep.open(), is_shared=True))
        snapshots = watch_commands._snapshots("tiny")
        assert [next(snapshots).is_active for _ in range(9)] == [True] * 9
    assert [(snapshot.is_active, snapshot.exit_code) for snapshot in snapshots] == [(False, 75)] * 4


def test_a_sweep_is_locked_while_its_cells_run(sweep, monkeypatch):
    locked = []
    run = cell_runner.run_recipe

    def look_and_run(*arguments):
        locked.append(is_locked(sweep_folders(sweep.bench.base)[-1]))
        return run(*arguments)

    monkeypatch.setattr(cell_runner, "run_recipe", look_and_run)
    folder = sweep.run()
    assert locked == [True] * 3 and not is_locked(folder)


@pytest.mark.parametrize("parallel", [1, 3])
def test_a_stage_that_fails_is_not_tried_again_by_the_other_cells_that_share_it(sweep, calls, parallel):
    sweep.bench.control(tokenizer="fail")
    with pytest.raises(StageError) as caught:
        sweep.run(f"sweep.parallel={parallel}")
    assert calls() == ["tokenizer"]
    lines = str(caught.value).splitlines()[1:]
    assert sum("tokenizer, which another cell shares, failed there: " in line for line in lines) == 2
    assert [result.status for result in sweep.results()] == ["failed"] * 3
    sweep.bench.control()
    sweep.run()
    assert calls() == ["tokenizer", *CELL, *CELL, *CELL]
    assert "1-tokenizer: runs, it ended before anything was saved" in sweep.bench.display.text


def test_a_cell_names_the_command_that_continues_it_to_the_last_stage_of_the_sweep(sweep):
    sweep.bench.control(pretrain="fail", only='"steps": 5')
    with pytest.raises(StageError):
        sweep.run()
    assert sweep.results()[1].run.state.command.endswith(" --set pretrain.horizon.steps=5 --until base_eval")


def test_a_cell_that_there_is_not_is_refused_before_a_folder_is_made(sweep, monkeypatch, capsys):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(sweep.bench.base))
    assert main(["sweep", str(sweep.bench.recipe), "--cell", "4"]) == 2
    assert "--cell 4: the sweep has 3 cells, counted from 1" in capsys.readouterr().err
    assert not sweep_folders(sweep.bench.base)


def test_fail_fast_starts_no_other_cell(sweep, calls):
    sweep.bench.control(pretrain="fail")
    with pytest.raises(StageError):
        sweep.run(stops_at_failure=True)
    assert calls() == ["tokenizer", "pretrain"]
    assert [result.status for result in sweep.results()] == ["failed", "waiting", "waiting"]


def test_the_worst_kind_of_failure_decides_the_exit_code():
    raise_worst([], 3)
    missed, busy, diverged = ExpectationError("not met"), LockError("in use"), StageError("diverged")
    bug = NanochatError("ended with exit status 1")
    for errors, code in (([missed], 5), ([missed, busy], 6), ([busy, diverged, missed], 4), ([diverged, bug], 1)):
        with pytest.raises(type(errors[0]) if len(errors) == 1 else Exception) as caught:
            raise_worst([CellFailure(n, error) for n, error in enumerate(errors, start=1)], 3)
        assert caught.value.exit_code == code
        assert len(str(caught.value).splitlines()) == 1 + len(errors)


def test_a_signal_stops_the_sweep_and_the_same_command_continues_it(sweep, calls):
    sweep.bench.control(pretrain="wait", only='"steps": 5')
    make_display = sweep.bench.make_display

    def make_interrupting():
        display = make_display()
        display.on_progress = lambda title: "cell 2/3: 2-pretrain" in title and os.kill(os.getpid(), signal.SIGINT)
        return display

    sweep.bench.make_display = make_interrupting
    with pytest.raises(InterruptedRun) as caught:
        sweep.run()
    assert str(caught.value).startswith("cell 2: 2-pretrain: stopped at step 2")
    end = " (cells: 1 finished, 1 interrupted, 1 waiting); continue with: nanochat-run tiny.yaml"
    assert str(caught.value).endswith(end)
    assert [result.status for result in sweep.results()] == ["finished", "interrupted", "waiting"]
    assert calls() == ["tokenizer", *CELL, "pretrain"]
    sweep.bench.control()
    sweep.bench.make_display = make_display
    sweep.run()
    assert calls() == [*CELL, *CELL]


def test_a_cell_waits_for_a_stage_that_another_command_computes(sweep, calls):
    sweep.write("sweep: {over: {pretrain.horizon.steps: [4, 5]}, until: pretrain}\n")
    sweep.bench.run("sweep=null", only="tokenizer")
    calls()
    folder = sweep.bench.stage_folder("tokenizer")
    folder.forget()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-S", "-c", hold, str(folder.lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        make_display, release = sweep.bench.make_display, other.stdin.close

        def make_releasing():
            display = make_display()
            log_line = display.log_line
            display.log_line = lambda text: (log_line(text), "waits" in text and release())
            return display

        sweep.bench.make_display = make_releasing
        sweep.run()
    assert "cell 1/2: 1-tokenizer: waits, because another command holds stage tokenizer" in sweep.bench.display.text
    assert calls() == ["tokenizer", "pretrain", "pretrain"]


def test_a_cell_that_another_command_runs_is_reported_and_the_others_run(sweep, calls):
    sweep.write("sweep: {over: {pretrain.horizon.steps: [4, 5]}, until: pretrain}\n")
    sweep.bench.control(pretrain="fail")
    with pytest.raises(StageError):
        sweep.run()
    sweep.bench.control()
    busy = sweep.results()[0].run
    busy.state.model_copy(update={"status": "running"}).write(busy.folder.state)
    with run_lock(busy.folder), pytest.raises(LockError, match="cell 1: another command holds the run"):
        sweep.run()
    assert [result.status for result in sweep.results()] == ["interrupted", "finished"]


def test_everything_is_checked_before_the_first_cell(sweep, calls):
    sweep.write("sweep: {over: {sources.text.path: [text.txt, missing]}}\n")
    with pytest.raises(PreflightError, match="missing"):
        sweep.run()
    assert calls() == []
    assert not sweep_folders(sweep.bench.base)


def test_the_same_cells_are_the_same_sweep_and_other_cells_another(sweep):
    first = sweep.open()
    assert sweep.open() == first
    sweep.write("sweep: {over: {model.n_layer: [1, 2]}}\n")
    second = sweep.open()
    assert second != first
    assert [cell.values for cell in sweep.state().cells] == [{"model.n_layer": 1}, {"model.n_layer": 2}]
    second.state.write_text("{")
    assert sweep.open() not in (first, second)
