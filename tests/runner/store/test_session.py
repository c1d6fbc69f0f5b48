"""Tests that two commands never work on one run, and that a run whose process died is continued."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest

from nanochat.errors import LockError
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.store import session
from nanochat.runner.store.provenance import host_name
from nanochat.runner.store.run_catalog import list_runs

HELD = f"host {host_name()}, pid {os.getpid()}"
KILLED = {"status": "running", "host": "elsewhere", "pid": 2**22 - 3}


def started_between_stages(bench, *overrides, **changes) -> str:
    """Start the same command again when a run has finished its first stage; return the error of the second one."""
    errors: list[str] = []

    def start_again(text: str) -> None:
        display.lines.append(text)
        if text.startswith("1-tokenizer: done"):
            with pytest.raises(LockError) as caught:
                run_recipe(bench.load(*overrides), bench.request(**changes), bench.make_display())
            errors.append(str(caught.value))

    display = bench.make_display()
    display.log_line = start_again
    run_recipe(bench.load(*overrides), bench.request(**changes), display)
    (error,) = errors
    return error


def test_the_same_command_is_refused_while_it_runs(bench):
    """Between two stages no stage is locked, but the run is. The first command ends as if it had been alone."""
    assert HELD in started_between_stages(bench)
    (run,) = list_runs(bench.base)
    assert run.state.status == "finished"
    assert {entry.status for entry in run.state.stages} == {"finished"}


def test_the_same_command_is_refused_while_it_forces_stages(finished):
    assert HELD in started_between_stages(finished, force=("all",))
    assert [run.state.status for run in list_runs(finished.base)] == ["finished", "finished"]


def test_of_two_commands_that_start_at_the_same_instant_one_is_refused(bench, monkeypatch):
    """Both are ready to create a run folder; the second one must see that of the first."""
    both = threading.Barrier(2)
    create = session.create_run_folder

    def create_together(*arguments):
        with contextlib.suppress(threading.BrokenBarrierError):  # the other one waits for its turn, as it should
            both.wait(timeout=0.3)
        return create(*arguments)

    monkeypatch.setattr(session, "create_run_folder", create_together)
    ended: list[object] = []

    def start() -> None:
        try:
            ended.append(run_recipe(bench.load(), bench.request(), bench.make_display()))
        except LockError as error:
            ended.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (refused,) = [result for result in ended if isinstance(result, LockError)]
    assert HELD in str(refused)
    (run,) = list_runs(bench.base)
    assert run.state.status == "finished"


def test_a_run_of_the_same_name_that_computes_something_else_is_not_refused(bench):
    """People run one recipe several times at once, with different seeds for example."""

    def start_another(text: str) -> None:
        if text.startswith("1-tokenizer: done"):
            run_recipe(bench.load("seed=7"), bench.request(), bench.make_display())

    display = bench.make_display()
    display.log_line = start_another
    run_recipe(bench.load(), bench.request(), display)
    assert [run.state.status for run in list_runs(bench.base)] == ["finished", "finished"]


def test_cached_results_are_shown_while_another_command_works_on_the_run(finished):
    run = finished.first
    before = run.folder.state.read_bytes()
    run.state.model_copy(update={"status": "running"}).write(run.folder.state)
    with session.run_lock(run.folder):
        again = finished.run()
    assert again.folder == run.folder
    assert "nothing to do" in finished.display.text and HELD in finished.display.text
    assert "spelling 0.75" in finished.display.text
    assert again.state.status == "running" and before != run.folder.state.read_bytes()


def test_a_run_killed_under_another_host_name_is_continued(bench, monkeypatch):
    """Containers get a new name each time, and a laptop's name changes with the network."""
    run = bench.run(last="tokenizer")
    run.state.model_copy(update=KILLED).write(run.folder.state)
    monkeypatch.setattr("platform.node", lambda: "renamed")
    assert bench.run().folder == run.folder
    (other,) = list_runs(bench.base)
    assert (other.state.status, other.state.host) == ("finished", "renamed")


def test_a_dead_run_is_closed_by_the_next_run_of_another_recipe(bench):
    run = bench.run(last="tokenizer")
    run.state.model_copy(update=KILLED).write(run.folder.state)
    bench.run("name=other", "tokenizer.vocab_size=301", last="tokenizer")
    (closed,) = list_runs(bench.base, "tiny")
    assert (closed.state.status, closed.state.message) == ("interrupted", "the process of the run died")
