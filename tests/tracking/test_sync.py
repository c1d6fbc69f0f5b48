"""Tests that MLflow shows what the local files hold, with each point once, whatever happens in between."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nanochat.tracking.link import read_link
from nanochat.tracking.mlflow_store import TrackingOutageError, open_store
from nanochat.tracking.run_view import Artifact, Dataset
from nanochat.tracking.sync import Sender
from nanochat.tracking.uploader import Uploader, close_stale

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


def uploader_of(fake_run, uri: str) -> Uploader:
    return Uploader(uri, "nanochat", view=fake_run.view, pending=list, host="here", is_alive=lambda pid, started: True)


def steps_of(store, fake_run, name="train/loss"):
    link = read_link(fake_run.folder / "stage.json")
    return [(m.step, m.value) for m in store.client.get_metric_history(link.run_id, name)]


def test_sender_continues_a_resumed_stage_without_duplicate_steps(uri, fake_run):
    """A second sender adds only the steps that the store lacks, though the file was truncated."""
    store = open_store(uri, "nanochat")
    fake_run.append(fake_run.metrics, range(5))
    Sender(store).send(fake_run.view())
    fake_run.metrics.write_text("")
    fake_run.append(fake_run.metrics, range(8))
    Sender(store).send(fake_run.view())
    assert steps_of(store, fake_run) == [(s, float(s)) for s in range(8)]
    assert len(store.client.search_runs([store.experiment_id])) == 2


def test_stage_is_a_named_child_run_with_params_tags_and_status(uri, fake_run):
    store = open_store(uri, "nanochat")
    Sender(store).send(fake_run.view("FINISHED", "FINISHED", metrics={"pretrain/bpb": 1.25}))
    parent = store.client.get_run(read_link(fake_run.folder / "run.json").run_id)
    child = store.client.get_run(read_link(fake_run.folder / "stage.json").run_id)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (child.info.run_name, child.data.params) == ("1-pretrain", {"steps": "10"})
    assert child.data.tags["mlflow.note.content"] == "loss"
    assert child.data.metrics == {"pretrain/bpb": 1.25}
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")


def test_times_are_those_of_the_run_not_of_the_upload(uri, fake_run):
    """MLflow stores milliseconds."""
    store = open_store(uri, "nanochat")
    Sender(store).send(fake_run.view("FINISHED", "FINISHED", started=1_700_000_000.5, ended=1_700_000_060.25))
    child = store.client.get_run(read_link(fake_run.folder / "stage.json").run_id)
    assert (child.info.start_time, child.info.end_time) == (1_700_000_000_500, 1_700_000_060_250)


def test_closed_run_is_reopened_when_the_stage_resumes(uri, fake_run):
    store = open_store(uri, "nanochat")
    seen = []
    for status in ("KILLED", "RUNNING", "FINISHED"):
        Sender(store).send(fake_run.view(status, status))
        seen.append(store.client.get_run(read_link(fake_run.folder / "stage.json").run_id).info.status)
    assert seen == ["KILLED", "RUNNING", "FINISHED"]


def test_artifacts_tables_and_datasets_are_uploaded_once(uri, fake_run, tmp_path):
    note, table = tmp_path / "samples.md", tmp_path / "spelling.jsonl"
    note.write_text("hello")
    table.write_text('{"prompt": "a", "correct": true}\n{"prompt": "b", "correct": false}\n')
    view = fake_run.view(
        artifacts=(Artifact(path=note, folder="samples"),),
        tables=(table,),
        datasets=(Dataset(name="stdlib", digest="d" * 64, source="builtin", context="training"),),
    )
    store = open_store(uri, "nanochat")
    Sender(store).send(view)
    Sender(store).send(view)
    run = store.client.get_run(read_link(fake_run.folder / "stage.json").run_id)
    assert [a.path for a in store.client.list_artifacts(run.info.run_id, "samples")] == ["samples/samples.md"]
    sent = store.client.download_artifacts(run.info.run_id, "tables/spelling.json", str(tmp_path))
    with open(sent) as file:  # noqa: PTH123
        assert json.load(file) == {"columns": ["prompt", "correct"], "data": [["a", True], ["b", False]]}
    assert [d.dataset.name for d in run.inputs.dataset_inputs] == ["stdlib"]


def test_artifact_written_after_the_run_ended_is_uploaded(uri, fake_run):
    """The sender may see the final status before the report is written."""
    report = fake_run.folder / "report.md"
    view = replace(fake_run.view("FINISHED", "FINISHED"), artifacts=(Artifact(path=report),))
    store = open_store(uri, "nanochat")
    sender = Sender(store)
    sender.send(view)
    report.write_text("all is well")
    sender.send(view)
    run_id = read_link(fake_run.folder / "run.json").run_id
    assert [artifact.path for artifact in store.client.list_artifacts(run_id)] == ["report.md"]
    assert store.client.get_run(run_id).info.status == "FINISHED"


def test_run_deleted_in_the_ui_is_created_again(uri, fake_run):
    store = open_store(uri, "nanochat")
    Sender(store).send(fake_run.view())
    before = read_link(fake_run.folder / "stage.json").run_id
    store.client.delete_run(before)
    fake_run.append(fake_run.metrics, range(3))
    Sender(store).send(fake_run.view())
    assert read_link(fake_run.folder / "stage.json").run_id != before
    assert [step for step, _ in steps_of(store, fake_run)] == [0, 1, 2]


def test_failure_between_two_batches_loses_and_duplicates_nothing(uri, fake_run, monkeypatch):
    monkeypatch.setattr("nanochat.tracking.sync._BATCH", 4)
    store = open_store(uri, "nanochat")
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
    uploader = uploader_of(fake_run, f"sqlite:///{tmp_path}/file/mlflow.db")
    uploader.start()
    uploader.stop()
    assert uploader.join(20)
    assert "mlflow.db" in uploader.problem
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

    def open_store(uri, experiment):
        raise error

    monkeypatch.setattr("nanochat.tracking.uploader.open_store", open_store)
    uploader = uploader_of(fake_run, "sqlite:///unused.db")
    uploader.start()
    uploader.stop()
    assert uploader.join(20)
    assert uploader.problem == problem


def test_uploader_uploads_earlier_runs_and_closes_runs_of_dead_processes(uri, fake_run, tmp_path):
    earlier = type(fake_run)(tmp_path / "earlier")
    earlier.append(earlier.metrics, range(3))
    stale = type(fake_run)(tmp_path / "stale")
    store = open_store(uri, "nanochat")
    Sender(store).send(stale.view())
    uploader = Uploader(
        uri,
        "nanochat",
        view=lambda: fake_run.view("FINISHED", "FINISHED"),
        pending=lambda: [earlier.view("KILLED", "KILLED")],
        host="here",
        is_alive=lambda pid, started: False,
    )
    uploader.start()
    uploader.stop()
    assert uploader.join(30) and uploader.problem is None, uploader.problem
    assert [step for step, _ in steps_of(store, earlier)] == [0, 1, 2]
    statuses = sorted(r.info.status for r in store.client.search_runs([store.experiment_id]))
    assert statuses == ["FINISHED", "FINISHED", "KILLED", "KILLED", "KILLED", "KILLED"]


def test_close_stale_keeps_runs_of_live_processes_and_other_hosts(uri, fake_run):
    store = open_store(uri, "nanochat")
    Sender(store).send(fake_run.view())
    assert close_stale(store, host="elsewhere", is_alive=lambda pid, started: False) == []
    assert close_stale(store, host="here", is_alive=lambda pid, started: True) == []
    assert len(close_stale(store, host="here", is_alive=lambda pid, started: False)) == 2
