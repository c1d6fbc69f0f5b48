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


@pytest.fixture
def store(uri):
    return open_store(uri, "nanochat")


def uploader_of(fake_run, uri: str) -> Uploader:
    return Uploader(uri, "nanochat", view=fake_run.view, pending=list, host="here", is_alive=lambda pid, started: True)


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


def test_failure_between_two_batches_loses_and_duplicates_nothing(store, fake_run, monkeypatch):
    monkeypatch.setattr("nanochat.tracking.sync._BATCH", 4)
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
        host="here",
        is_alive=lambda pid, started: False,
    )
    assert problem_of(uploader) is None
    assert [step for step, _ in steps_of(store, earlier)] == [0, 1, 2]
    statuses = sorted(r.info.status for r in store.client.search_runs([store.experiment_id]))
    assert statuses == ["FINISHED", "FINISHED", "KILLED", "KILLED", "KILLED", "KILLED"]


def test_close_stale_keeps_runs_of_live_processes_and_other_hosts(store, fake_run):
    Sender(store).send(fake_run.view())
    assert close_stale(store, host="elsewhere", is_alive=lambda pid, started: False) == []
    assert close_stale(store, host="here", is_alive=lambda pid, started: True) == []
    assert len(close_stale(store, host="here", is_alive=lambda pid, started: False)) == 2
