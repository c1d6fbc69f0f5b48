"""Tests that MLflow shows what the local files hold, with each point once, whatever happens in between."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace

import pytest

from nanochat.tracking.link import read_link
from nanochat.tracking.mlflow_store import TrackingOutageError, open_store
from nanochat.tracking.run_view import Artifact, Dataset, RunView
from nanochat.tracking.store_address import database_path
from nanochat.tracking.sync import Sender
from nanochat.tracking.uploader import Uploader, close_stale

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture
def store(uri):
    return open_store(uri, "nanochat")


def uploader_of(fake_run, uri: str) -> Uploader:
    return Uploader(
        uri, "nanochat", view=fake_run.view, pending=list, machine="here", is_alive=lambda pid, started: True
    )


def problem_of(uploader: Uploader) -> str | None:
    """Return what kept the uploader from one complete upload."""
    uploader.start()
    uploader.stop()
    assert uploader.join(30)
    return uploader.problem


def stage_of(store, fake_run):
    return store.client.get_run(read_link(fake_run.folder / "stage.json").run_id)


def steps_of(store, fake_run):
    history = store.client.get_metric_history(stage_of(store, fake_run).info.run_id, "train/loss")
    return [(metric.step, metric.value) for metric in history]


def test_sender_continues_a_resumed_stage_without_duplicate_steps(store, fake_run):
    """A second sender adds only the steps that the store lacks, though the file was truncated."""
    fake_run.append(fake_run.metrics, range(5))
    Sender(store).send(fake_run.view())
    fake_run.metrics.write_text("")
    fake_run.append(fake_run.metrics, range(8))
    Sender(store).send(fake_run.view())
    assert steps_of(store, fake_run) == [(s, float(s)) for s in range(8)]
    assert len(store.client.search_runs([store.experiment_id])) == 2


def test_stage_is_a_named_child_run_with_params_tags_status_and_its_own_times(store, fake_run):
    """MLflow stores milliseconds."""
    times = {"started": 1_700_000_000.5, "ended": 1_700_000_060.25}
    Sender(store).send(fake_run.view("FINISHED", "FINISHED", metrics={"pretrain/bpb": 1.25}, **times))
    parent = store.client.get_run(read_link(fake_run.folder / "run.json").run_id)
    child = stage_of(store, fake_run)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.run_name, child.data.params) == ("1-pretrain", {"steps": "10"})
    assert child.data.tags["mlflow.note.content"] == "loss"
    assert child.data.metrics == {"pretrain/bpb": 1.25}
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert (child.info.start_time, child.info.end_time) == (1_700_000_000_500, 1_700_000_060_250)


def test_closed_run_is_reopened_when_the_stage_resumes(store, fake_run):
    seen = []
    for status in ("KILLED", "RUNNING", "FINISHED"):
        Sender(store).send(fake_run.view(status, status))
        seen.append(stage_of(store, fake_run).info.status)
    assert seen == ["KILLED", "RUNNING", "FINISHED"]


def test_artifacts_tables_and_datasets_are_uploaded_once(store, fake_run, tmp_path):
    note, table = tmp_path / "samples.md", tmp_path / "spelling.jsonl"
    note.write_text("hello")
    table.write_text('{"prompt": "a", "correct": true}\n{"prompt": "b", "correct": false}\n')
    view = fake_run.view(
        artifacts=(Artifact(path=note, folder="samples"),),
        tables=(table,),
        datasets=(Dataset(name="stdlib", digest="d" * 64, source="builtin", context="training"),),
    )
    Sender(store).send(view)
    Sender(store).send(view)
    run = stage_of(store, fake_run)
    assert [a.path for a in store.client.list_artifacts(run.info.run_id, "samples")] == ["samples/samples.md"]
    sent = store.client.download_artifacts(run.info.run_id, "tables/spelling.json", str(tmp_path))
    with open(sent) as file:  # noqa: PTH123
        assert json.load(file) == {"columns": ["prompt", "correct"], "data": [["a", True], ["b", False]]}
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["stdlib"]


def test_artifact_written_after_the_run_ended_is_uploaded(store, fake_run):
    """The sender may see the final status before the report is written."""
    report = fake_run.folder / "report.md"
    view = replace(fake_run.view("FINISHED", "FINISHED"), artifacts=(Artifact(path=report),))
    sender = Sender(store)
    sender.send(view)
    report.write_text("all is well")
    sender.send(view)
    run_id = read_link(fake_run.folder / "run.json").run_id
    assert [artifact.path for artifact in store.client.list_artifacts(run_id)] == ["report.md"]
    assert store.client.get_run(run_id).info.status == "FINISHED"


def test_run_deleted_in_the_ui_is_created_again(store, fake_run):
    Sender(store).send(fake_run.view())
    before = read_link(fake_run.folder / "stage.json").run_id
    store.client.delete_run(before)
    fake_run.append(fake_run.metrics, range(3))
    Sender(store).send(fake_run.view())
    assert read_link(fake_run.folder / "stage.json").run_id != before
    assert [step for step, _ in steps_of(store, fake_run)] == [0, 1, 2]


def test_run_deleted_while_it_is_uploaded_is_created_again_at_once(store, fake_run):
    """The sender does not ask before each request whether the run still exists."""
    sender = Sender(store)
    fake_run.append(fake_run.metrics, range(3))
    before = sender.send(fake_run.view()).run_id
    store.client.delete_run(before)
    store.client.delete_run(read_link(fake_run.folder / "stage.json").run_id)
    fake_run.append(fake_run.metrics, range(3, 5))
    after = sender.send(fake_run.view("FINISHED", "FINISHED"))
    assert after.run_id != before and after.is_complete
    assert [step for step, _ in steps_of(store, fake_run)] == [0, 1, 2, 3, 4]
    assert stage_of(store, fake_run).data.tags["mlflow.parentRunId"] == after.run_id


@pytest.mark.parametrize("deleted", ["run.json", "stage.json"])
def test_part_of_a_finished_run_that_was_deleted_is_created_again(store, fake_run, deleted):
    """The other part keeps its MLflow run, and the stage is shown under the run."""
    Sender(store).send(fake_run.view("FINISHED", "FINISHED"))
    before = {name: read_link(fake_run.folder / name).run_id for name in ("run.json", "stage.json")}
    store.client.delete_run(before[deleted])
    Sender(store).send(fake_run.view("FINISHED", "FINISHED"))
    after = {name: read_link(fake_run.folder / name).run_id for name in before}
    assert {name for name in before if before[name] != after[name]} == {deleted}
    assert stage_of(store, fake_run).data.tags["mlflow.parentRunId"] == after["run.json"]
    active = store.client.search_runs([store.experiment_id])
    assert sorted((run.info.run_id, run.info.status) for run in active) == sorted(
        (run_id, "FINISHED") for run_id in after.values()
    )


@pytest.mark.parametrize("number", [1, 2])
def test_kill_after_mlflow_created_a_run_does_not_create_it_twice(store, fake_run, monkeypatch, number):
    """The id of the run, or of its stage, reaches the link file only after MLflow has answered."""
    real, created = store.client.create_run, []
    fake_run.append(fake_run.metrics, range(3))

    def create(*args, **kwargs):
        run = real(*args, **kwargs)
        created.append(run)
        if len(created) == number:
            raise KeyboardInterrupt
        return run

    with monkeypatch.context() as patch:
        patch.setattr(store.client, "create_run", create)
        with pytest.raises(KeyboardInterrupt):
            Sender(store).send(fake_run.view())
    Sender(store).send(fake_run.view("FINISHED", "FINISHED"))
    runs = store.client.search_runs([store.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["1-pretrain", "quick"]
    assert stage_of(store, fake_run).data.tags["mlflow.parentRunId"] == read_link(fake_run.folder / "run.json").run_id
    assert [step for step, _ in steps_of(store, fake_run)] == [0, 1, 2]


def test_moved_database_continues_the_same_runs(store, fake_run, tmp_path):
    """The link file still names the old place."""
    fake_run.append(fake_run.metrics, range(3))
    before = Sender(store).send(fake_run.view("KILLED", "KILLED")).run_id
    moved = tmp_path / "elsewhere" / "mlflow.db"
    moved.parent.mkdir()
    database_path(store.uri).rename(moved)
    fake_run.append(fake_run.metrics, range(3, 6))
    there = open_store(f"sqlite:///{moved}", "nanochat")
    link = Sender(there).send(fake_run.view("FINISHED", "FINISHED"))
    assert (link.run_id, link.uri, link.is_complete) == (before, there.uri, True)
    assert [step for step, _ in steps_of(there, fake_run)] == list(range(6))
    assert len(there.client.search_runs([there.experiment_id])) == 2


def test_another_experiment_or_store_gets_everything_once(store, fake_run, fresh_database, tmp_path):
    """Going back to the first one finds the runs that are there."""
    fake_run.append(fake_run.metrics, range(3))
    note = tmp_path / "samples.md"
    note.write_text("hello")
    view = replace(fake_run.view("FINISHED", "FINISHED"), artifacts=(Artifact(path=note),))
    shutil.copy(fresh_database, tmp_path / "other.db")
    other = open_store(f"sqlite:///{tmp_path}/other.db", "nanochat")
    for place in (store, open_store(store.uri, "second"), other, store):
        link = Sender(place).send(view)
        assert [step for step, _ in steps_of(place, fake_run)] == [0, 1, 2]
        assert len(place.client.search_runs([place.experiment_id])) == 2
        assert [artifact.path for artifact in place.client.list_artifacts(link.run_id)] == ["samples.md"]


def test_refused_items_are_named_and_the_rest_is_sent(store, fake_run, monkeypatch):
    """The limits of MLflow are real; only our own care with names is switched off."""
    monkeypatch.setattr("nanochat.tracking.writer.acceptable_key", lambda name: name)
    fake_run.append(fake_run.metrics, range(3))
    fake_run.append(fake_run.metrics, range(2), name="a//b")
    tags = {f"tag{i}": "x" for i in range(120)} | {"k" * 251: "long", "a,b": "comma", "mlflow.runName": "mine"}
    params = {"steps": "10", "bad;name": "1"}
    sender = Sender(store)
    sender.send(fake_run.view("FINISHED", "FINISHED", tags=tags, params=params))
    run = stage_of(store, fake_run)
    assert run.data.params == {"steps": "10"}
    assert tags.keys() - run.data.tags.keys() == {"k" * 251, "a,b"}
    assert run.info.run_name == "1-pretrain"
    assert [step for step, _ in steps_of(store, fake_run)] == [0, 1, 2]
    assert {refusal.partition("`")[2].partition("`")[0] for refusal in sender.refusals} == {
        *("k" * 251, "a,b", "bad;name", "a//b", "mlflow.runName"),
    }
    assert all(refusal.startswith("1-pretrain: ") for refusal in sender.refusals)
    assert read_link(fake_run.folder / "stage.json").is_complete


def test_texts_are_stored_without_control_characters_and_a_cut_is_marked(store, fake_run, tmp_path):
    """Half of a surrogate pair comes from the name of a file that is not UTF-8, and no database can store it."""
    table = tmp_path / "spelling.jsonl"
    table.write_text('{"answer": "<b>\\u001b[2J\\u2028![](x)", "parts": ["\\u0007"]}\n')
    hostile = "\x00 \x1b]0;title\x07 \u202e \udce9 two\nlines"
    params, tags = {"hostile": hostile, "long": "p" * 7000}, {"hostile": hostile, "long": "t" * 9000}
    sender = Sender(store)
    sender.send(fake_run.view(params=params, tags=tags, tables=(table,)))
    data, shown = stage_of(store, fake_run).data, r"\x00 \x1b]0;title\x07 \u202e \udce9 two" + "\nlines"
    assert (data.params["hostile"], data.tags["hostile"]) == (shown, shown)
    assert (len(data.params["long"]), len(data.tags["long"])) == (6000, 8000)
    assert data.params["long"].endswith("p … [7,000 characters; MLflow shows the first]")
    assert data.tags["long"].endswith("t … [9,000 characters; MLflow shows the first]")
    sent = store.client.download_artifacts(stage_of(store, fake_run).info.run_id, "tables/spelling.json", str(tmp_path))
    with open(sent) as file:  # noqa: PTH123
        assert json.load(file)["data"] == [["<b>\\x1b[2J\u2028![](x)", '["\\u0007"]']]
    assert sender.refusals == []


def test_files_that_cannot_be_stored_do_not_keep_the_rest_from_being_sent(store, fake_run, tmp_path, monkeypatch):
    """They may belong on another server. They are sent later."""
    note = tmp_path / "samples.md"
    note.write_text("hello")
    fake_run.append(fake_run.metrics, range(3))
    view = fake_run.view("FINISHED", "FINISHED", artifacts=(Artifact(path=note),))
    sender = Sender(store)
    with monkeypatch.context() as patch:
        patch.setattr(store.client, "log_artifact", lambda *_: exec("import boto3_is_not_installed"))
        with pytest.raises(TrackingOutageError, match=r"1-pretrain: samples.md: No module named 'boto3_is"):
            sender.send(view)
    assert stage_of(store, fake_run).info.status == "FINISHED"
    assert [step for step, _ in steps_of(store, fake_run)] == [0, 1, 2]
    sender.send(view)
    run_id = read_link(fake_run.folder / "stage.json").run_id
    assert [artifact.path for artifact in store.client.list_artifacts(run_id)] == ["samples.md"]


def test_request_that_arrives_late_adds_no_point_twice(store, fake_run):
    """A slow server may still be working on a request that we gave up and repeat."""
    real, late = store.client.log_batch, []

    def slow(run_id, metrics=(), **rest):
        if metrics and not late:
            late.append((run_id, metrics))
            raise ConnectionError("read timed out")
        if metrics:
            real(late[0][0], metrics=late[0][1])
        return real(run_id, metrics=metrics, **rest)

    store.client.log_batch = slow
    fake_run.append(fake_run.metrics, range(5))
    sender = Sender(store)
    with pytest.raises(TrackingOutageError, match="read timed out"):
        sender.send(fake_run.view())
    time.sleep(0.002)  # MLflow's unit of time is a millisecond
    sender.send(fake_run.view())
    assert [step for step, _ in steps_of(store, fake_run)] == [0, 1, 2, 3, 4]


def test_failed_question_to_the_store_loses_no_point(store, fake_run):
    """The points of the first metric are not sent yet when the last step of the second cannot be read."""
    fake_run.append(fake_run.metrics, range(2))
    fake_run.append(fake_run.metrics, range(2), name="train/lr")
    Sender(store).send(fake_run.view())
    fake_run.append(fake_run.metrics, range(2, 5))
    fake_run.append(fake_run.metrics, range(2, 5), name="train/lr")
    real, asked = store.client.get_metric_history, []

    def flaky(run_id, name):
        asked.append(name)
        if len(asked) == 2:
            raise ConnectionError("the server went away")
        return real(run_id, name)

    store.client.get_metric_history = flaky
    sender = Sender(store)
    with pytest.raises(TrackingOutageError, match="the server went away"):
        sender.send(fake_run.view())
    sender.send(fake_run.view())
    store.client.get_metric_history = real
    assert steps_of(store, fake_run) == [(s, float(s)) for s in range(5)]


def test_restored_experiment_is_announced_with_the_runs_that_come_back(store, fake_run):
    """MLflow restores all runs of an experiment, also those that were deleted one by one."""
    Sender(store).send(fake_run.view("FINISHED", "FINISHED"))
    store.client.delete_experiment(store.experiment_id)
    again = open_store(store.uri, "nanochat")
    assert "`nanochat` was deleted; it is restored, and MLflow restored the 2 deleted runs in it" in again.notice
    assert len(store.client.search_runs([store.experiment_id])) == 2
    assert open_store(store.uri, "nanochat").notice == ""


def test_failure_between_two_batches_loses_and_duplicates_nothing(store, fake_run, monkeypatch):
    monkeypatch.setattr("nanochat.tracking.writer._BATCH_POINTS", 4)
    fake_run.append(fake_run.metrics, range(10))
    real, calls = store.client.log_batch, []

    def flaky(run_id, metrics=(), **rest):
        if metrics:
            calls.append(len(metrics))
            if len(calls) == 2:
                raise ConnectionError("the server went away")
        return real(run_id, metrics=metrics, **rest)

    store.client.log_batch = flaky
    sender = Sender(store)
    with pytest.raises(TrackingOutageError, match="the server went away"):
        sender.send(fake_run.view())
    fake_run.append(fake_run.metrics, range(10, 12))
    sender.send(fake_run.view())
    assert [step for step, _ in steps_of(store, fake_run)] == list(range(12))


def test_uploader_reports_an_outage_instead_of_raising_it(tmp_path, fake_run):
    (tmp_path / "file").write_text("")
    assert "mlflow.db" in problem_of(uploader_of(fake_run, f"sqlite:///{tmp_path}/file/mlflow.db"))
    assert read_link(fake_run.folder / "run.json") is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ModuleNotFoundError("No module named 'x'"), "MLflow is not completely installed: No module named 'x'"),
        (KeyError("step"), "the upload failed with a bug: KeyError: 'step'"),
    ],
)
def test_uploader_reports_broken_installations_and_bugs(fake_run, monkeypatch, error, problem):
    """Python's hook for threads also shows the traceback of a bug."""

    def fail(uri, experiment):
        raise error

    monkeypatch.setattr("nanochat.tracking.uploader.open_store", fail)
    assert problem_of(uploader_of(fake_run, "sqlite:///unused.db")) == problem


def test_uploader_uploads_earlier_runs_and_closes_runs_of_dead_processes(store, fake_run, tmp_path):
    earlier = type(fake_run)(tmp_path / "earlier")
    earlier.append(earlier.metrics, range(3))
    stale = type(fake_run)(tmp_path / "stale")
    Sender(store).send(stale.view())
    uploader = Uploader(
        store.uri,
        "nanochat",
        view=lambda: fake_run.view("FINISHED", "FINISHED"),
        pending=lambda: [earlier.view("KILLED", "KILLED")],
        machine="here",
        is_alive=lambda pid, started: False,
    )
    assert problem_of(uploader) is None
    assert [step for step, _ in steps_of(store, earlier)] == [0, 1, 2]
    statuses = sorted(r.info.status for r in store.client.search_runs([store.experiment_id]))
    assert statuses == ["FINISHED", "FINISHED", "KILLED", "KILLED", "KILLED", "KILLED"]


@pytest.mark.parametrize("failing", ["first", "quick"])
def test_run_that_fails_keeps_no_other_from_being_uploaded(store, fake_run, tmp_path, monkeypatch, failing):
    """Neither the current run nor earlier ones."""
    from mlflow.exceptions import MlflowException  # here, because it takes seconds, in each process that collects tests

    views = []
    for name in ("first", "second"):
        earlier = type(fake_run)(tmp_path / name)
        views.append(replace(earlier.view("KILLED", "KILLED"), name=name, stages=()))
    client = type(store.client)
    real = client.create_run

    def create(self, *args, run_name, **kwargs):
        if run_name == failing:
            raise MlflowException(f"Incorrect string value in {run_name}")
        return real(self, *args, run_name=run_name, **kwargs)

    monkeypatch.setattr(client, "create_run", create)
    uploader = Uploader(
        store.uri,
        "nanochat",
        view=lambda: replace(fake_run.view("FINISHED"), stages=()),
        pending=lambda: views,
        machine="here",
        is_alive=lambda pid, started: True,
    )
    assert f"Incorrect string value in {failing}" in problem_of(uploader)
    names = {run.info.run_name for run in store.client.search_runs([store.experiment_id])}
    assert names == {"first", "second", "quick"} - {failing}


def test_two_commands_that_upload_an_earlier_run_at_once_create_it_once(store, fake_run, monkeypatch):
    """The second one waits, and finds it uploaded."""
    fake_run.append(fake_run.metrics, range(3))
    client = type(store.client)
    real, second = client.create_run, Sender(open_store(store.uri, "nanochat"))
    other = threading.Thread(target=second.send, args=(fake_run.view("KILLED", "KILLED"),))

    def create(self, *args, **kwargs):
        if not other.ident:
            other.start()
            other.join(0.3)
            assert other.is_alive(), "it must wait"
        return real(self, *args, **kwargs)

    monkeypatch.setattr(client, "create_run", create)
    Sender(store).send(fake_run.view("KILLED", "KILLED"))
    other.join(30)
    runs = store.client.search_runs([store.experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["1-pretrain", "quick"]
    assert [step for step, _ in steps_of(store, fake_run)] == [0, 1, 2]


def test_close_stale_ignores_runs_of_other_programs(store):
    run = store.client.create_run(store.experiment_id, tags={"pid_machine": "here", "pid": "none of ours"})
    assert close_stale(store, machine="here", is_alive=lambda pid, started: False) == []
    assert store.client.get_run(run.info.run_id).info.status == "RUNNING"


def test_close_stale_keeps_runs_of_live_processes_and_other_machines(store, fake_run):
    Sender(store).send(fake_run.view())
    assert close_stale(store, machine="elsewhere", is_alive=lambda pid, started: False) == []
    assert close_stale(store, machine="here", is_alive=lambda pid, started: True) == []
    assert len(close_stale(store, machine="here", is_alive=lambda pid, started: False)) == 2


def test_cells_are_below_one_run_of_their_sweep_which_stays_as_it_ended(store, fake_run, tmp_path):
    """Two processes upload a cell each, as jobs of a scheduler do, and the sweep itself is uploaded between them."""
    own = fake_run.view().tags
    sweep = RunView(
        name="grid", link=tmp_path / "grid" / "sweep.json", status="RUNNING", description="a sweep", tags=own,
        params={"cells": "2"}, metrics={},
    )  # fmt: skip
    first, second = fake_run, type(fake_run)(tmp_path / "second")
    Sender(store).send(replace(first.view("FINISHED", "FINISHED"), parent=sweep))
    Sender(store).send(replace(sweep, status="FINISHED", metrics={"best/bpb": 1.5}))
    Sender(store).send(replace(second.view("FINISHED", "FINISHED"), parent=sweep))
    parent = store.client.get_run(read_link(sweep.link).run_id)
    assert (parent.info.run_name, parent.info.status) == ("grid", "FINISHED")
    assert (parent.data.params, parent.data.metrics) == ({"cells": "2"}, {"best/bpb": 1.5})
    for cell in (first, second):
        run = store.client.get_run(read_link(cell.folder / "run.json").run_id)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert stage_of(store, cell).data.tags["mlflow.parentRunId"] == run.info.run_id
    names = [run.info.run_name for run in store.client.search_runs([store.experiment_id])]
    assert sorted(names) == ["1-pretrain", "1-pretrain", "grid", "quick", "quick"]
