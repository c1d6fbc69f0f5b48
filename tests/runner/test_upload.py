"""Tests of what a run leaves in MLflow, with a SQLite store: finished, failed, interrupted, resumed, cached."""

from __future__ import annotations

import shutil

import pytest

from nanochat.errors import ExpectationError, InterruptedRun, StageError
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.store.run_catalog import list_runs
from nanochat.storage.layout import StageFolder
from nanochat.tracking.link import read_link
from nanochat.tracking.mlflow_store import TrackingOutageError, open_store

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


@pytest.fixture
def tracked(bench, tmp_path, fresh_database):
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    bench.recipe.write_text(bench.recipe.read_text().replace("kind: none", "kind: mlflow"))
    bench.uri = f"sqlite:///{tmp_path}/mlflow.db"
    return bench


def shown(bench):
    """Return the store's runs by name, and the client."""
    store = open_store(bench.uri, "nanochat")
    runs = store.client.search_runs([store.experiment_id])
    return {run.info.run_name: run for run in runs}, store.client


def test_failed_interrupted_and_resumed_run_is_one_mlflow_run(tracked):
    """Every step is logged once, and statuses, artifacts, tags and inputs are in place."""
    tracked.control(pretrain="fail")
    with pytest.raises(StageError):
        run_recipe(tracked.load(), tracked.request(), tracked.display)
    runs, _ = shown(tracked)
    assert {name: run.info.status for name, run in runs.items()} == {
        "tiny": "FAILED",
        "1-tokenizer": "FINISHED",
        "2-pretrain": "FAILED",
    }
    tracked.control(pretrain="wait")
    tracked.interrupt()
    with pytest.raises(InterruptedRun):
        run_recipe(tracked.load(), tracked.request(), tracked.display)
    runs, _ = shown(tracked)
    assert (runs["tiny"].info.status, runs["2-pretrain"].info.status) == ("KILLED", "KILLED")
    before = {name: run.info.run_id for name, run in runs.items()}
    tracked.control()
    run = tracked.run()
    runs, client = shown(tracked)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert set(runs) == {"tiny", "1-tokenizer", "2-pretrain", "3-base_eval", "4-sft", "5-chat_eval"}
    assert before.items() <= {name: run.info.run_id for name, run in runs.items()}.items()
    pretrain = runs["2-pretrain"]
    history = client.get_metric_history(pretrain.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 8.0), (2, 4.0), (3, 8 / 3), (4, 2.0)]
    assert pretrain.data.tags["mlflow.parentRunId"] == runs["tiny"].info.run_id
    assert pretrain.data.tags["device"] == "pretend"
    assert pretrain.data.params["steps"] == "4"
    assert [d.dataset.name for d in pretrain.inputs.dataset_inputs] == ["text"]
    assert runs["tiny"].data.metrics["chat_eval/spelling"] == 0.75
    names = {artifact.path for artifact in client.list_artifacts(runs["tiny"].info.run_id)}
    assert {"report.html", "report.md", "recipe.yaml", "config.yaml", "plan.txt", "plan.json"} <= names
    assert run.records(tracked.base)["pretrain"].mlflow_run_id == pretrain.info.run_id

    assert {d.dataset.name for d in runs["tiny"].inputs.dataset_inputs} == {"text", "chats", "words"}
    headline = {name: x for name, x in runs["tiny"].data.metrics.items() if "/" not in name and name != "minutes"}
    assert headline == {"bpb": 1.5}
    models = {model.name: model for model in client.search_logged_models([pretrain.info.experiment_id])}
    measured = {name: {m.key: m.dataset_name for m in model.metrics} for name, model in models.items()}
    assert measured == {
        "tiny-pretrain": {"pretrain/val/bpb": "text", "base_eval/bpb": "text"},
        "tiny-sft": {"sft/train/loss": "chats", "chat_eval/spelling": "words"},
    }
    assert models["tiny-pretrain"].source_run_id == pretrain.info.run_id

    tracked.run("sft.horizon.steps=5", "name=longer")
    runs, _ = shown(tracked)
    assert runs["longer"].data.tags["cached.2-pretrain"] == pretrain.info.run_id
    names = [model.name for model in client.search_logged_models([pretrain.info.experiment_id])]
    assert sorted(names) == ["longer-sft", "tiny-pretrain", "tiny-sft"]  # the stage from the cache has its model


def test_finished_run_is_registered_if_its_recipe_asks_for_it_later(tracked):
    """Also by another recipe, all of whose stages are cached. Expectations decide on the alias."""
    tracked.run()
    met, unmet = (f'expect={{base_eval.bpb: "{condition}"}}' for condition in ("< 2", "< 1"))
    tracked.run("tracking.register=small", met)
    assert "MLflow: version 1 of the model `small` is now `best`" in tracked.display.lines
    with pytest.raises(ExpectationError):
        tracked.run("tracking.register=other", unmet, "name=twin")
    reason = "base_eval.bpb < 1 does not hold"
    line = f"MLflow: `best` was not moved to version 1 of the model `other`: {reason}"
    assert line in tracked.display.lines
    tracked.run("tracking.register=small", met)
    _, client = shown(tracked)
    (version,) = client.search_model_versions("name = 'small'")
    assert version.tags["run"].startswith("tiny/")
    assert version.tags["fingerprint"] == tracked.stage_folder("sft").path.name


@pytest.mark.parametrize(("how", "error", "status"), [("fail", StageError, "FAILED"), ("well", OSError, "FINISHED")])
def test_failed_report_leaves_no_open_mlflow_run(tracked, monkeypatch, how, error, status):
    """It does not replace the error of a failed stage."""

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanochat.runner.pipeline.write_report", fail)
    tracked.control(tokenizer=how)
    with pytest.raises(error):
        tracked.run(last="tokenizer")
    runs, _ = shown(tracked)
    assert {name: run.info.status for name, run in runs.items()} == {"tiny": status, "1-tokenizer": status}
    problem = "the run's outcome and report could not be written: OSError: [Errno 28] No space left on device"
    assert (problem in tracked.display.lines) == (how == "fail")


def test_run_during_an_outage_is_uploaded_by_the_next_run(tracked, monkeypatch):
    def fail(uri):
        raise TrackingOutageError(f"{uri}: the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr("nanochat.tracking.mlflow_store.probe", fail)
        tracked.run(last="pretrain")
    assert "the disk is gone" in tracked.display.text
    assert "the next run uploads it" in tracked.display.text
    tracked.run("name=second", "tokenizer.vocab_size=301", last="tokenizer")
    runs, client = shown(tracked)
    assert runs["tiny"].info.status == "FINISHED"
    children = client.search_runs(
        [runs["tiny"].info.experiment_id], f"tags.mlflow.parentRunId = '{runs['tiny'].info.run_id}'"
    )
    assert len(children) == 2
    pretrain = next(run for run in children if run.info.run_name == "2-pretrain")
    assert [m.step for m in client.get_metric_history(pretrain.info.run_id, "train/loss")] == [1, 2, 3, 4]


def test_run_of_a_killed_process_is_closed_by_the_next_run(tracked):
    """It was left running, both on disk and in the store."""
    first = tracked.run(last="tokenizer")
    state = first.state.model_copy(update={"status": "running", "pid": 2**22 - 3, "process_started": 1.0})
    state.write(first.folder.state)
    store = open_store(tracked.uri, "nanochat")
    store.client.update_run(read_link(first.folder.link).run_id, status="RUNNING")
    first.folder.link.write_text(
        read_link(first.folder.link).model_copy(update={"status": "RUNNING", "is_complete": False}).model_dump_json()
    )
    tracked.run("name=second", "tokenizer.vocab_size=301", last="tokenizer")
    runs, _ = shown(tracked)
    assert runs["tiny"].info.status == "KILLED"
    assert next(r for r in list_runs(tracked.base) if r.state.name == "tiny").state.status == "interrupted"
    assert (StageFolder(tracked.base / first.state.stages[0].folder)).record.exists()


def steps_by_name(bench, experiment="nanochat", uri=None):
    """Return the steps of the training loss of each run in a store, in the order in which MLflow has them."""
    store = open_store(uri or bench.uri, experiment)
    runs = store.client.search_runs([store.experiment_id])
    return {
        run.info.run_name: [m.step for m in store.client.get_metric_history(run.info.run_id, "train/loss")]
        for run in runs
    }


def test_project_and_base_folder_may_have_any_name(bench, fresh_database):
    """Files of the run and of its stages are read from the base folder, and stored beside the database."""
    odd = type(bench)(bench.folder / "q?a=1 100%20#ü", bench.make_display)
    odd.uri = f"sqlite:///{odd.folder}/mlflow.db"
    odd.recipe.write_text(odd.recipe.read_text().replace("kind: none", "kind: mlflow"))
    shutil.copy(fresh_database, odd.folder / "mlflow.db")
    odd.run(last="pretrain")
    assert steps_by_name(odd) == ALL_STEPS
    runs, client = shown(odd)
    assert "report.html" in {artifact.path for artifact in client.list_artifacts(runs["tiny"].info.run_id)}
    assert "record.json" in {artifact.path for artifact in client.list_artifacts(runs["2-pretrain"].info.run_id)}
    assert [path.name for path in bench.folder.iterdir() if path.is_dir()] == [odd.folder.name]


ALL_STEPS = {"tiny": [], "1-tokenizer": [1, 2, 3, 4], "2-pretrain": [1, 2, 3, 4]}


def test_nothing_to_do_uploads_what_was_deleted_in_mlflow(tracked):
    tracked.run(last="pretrain")
    runs, client = shown(tracked)
    client.delete_run(runs["2-pretrain"].info.run_id)
    tracked.run(last="pretrain")
    assert steps_by_name(tracked) == ALL_STEPS
    after, _ = shown(tracked)
    assert after["2-pretrain"].data.tags["mlflow.parentRunId"] == runs["tiny"].info.run_id == after["tiny"].info.run_id
    assert {run.info.status for run in after.values()} == {"FINISHED"}


def test_nothing_to_do_restores_a_deleted_experiment_and_says_so(tracked):
    tracked.run(last="pretrain")
    runs, client = shown(tracked)
    client.delete_experiment(runs["tiny"].info.experiment_id)
    tracked.run(last="pretrain")
    assert "restored the 3 deleted runs" in tracked.display.text
    assert steps_by_name(tracked) == ALL_STEPS


def test_nothing_to_do_uploads_to_a_store_or_experiment_named_later(tracked, tmp_path, fresh_database, monkeypatch):
    """It is the same run, and nothing is uploaded twice to the first store."""
    tracked.run("tracking.kind=none", last="pretrain")
    tracked.run(last="pretrain")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "second")
    tracked.run(last="pretrain")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(fresh_database, tmp_path / "elsewhere" / "runs.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/runs.db")
    tracked.run(last="pretrain")
    elsewhere = f"sqlite:///{tmp_path}/elsewhere/runs.db"
    assert steps_by_name(tracked) == steps_by_name(tracked, "second") == ALL_STEPS
    assert steps_by_name(tracked, "second", elsewhere) == ALL_STEPS
    assert len(list_runs(tracked.base)) == 1


def test_nothing_to_do_does_not_open_a_store_that_has_everything(tracked, monkeypatch):
    """Importing MLflow takes seconds. The line says where to look."""
    tracked.run(last="tokenizer")
    where = next(line for line in tracked.display.lines if line.startswith("MLflow: "))
    monkeypatch.setattr("nanochat.tracking.uploader.open_store", None)
    tracked.run(last="tokenizer")
    assert where.startswith("MLflow: ") and where in tracked.display.lines


def test_nothing_to_do_says_why_it_uploads_nothing(tracked, monkeypatch):
    """Other runs computed everything, or the address can never work."""
    tracked.run(last="tokenizer")
    tracked.run("name=other", last="tokenizer")
    assert "MLflow: nothing to upload, because other runs computed all stages" in tracked.display.lines
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "localhost:5000")
    tracked.run(last="tokenizer")
    assert "MLflow: not uploaded: MLFLOW_TRACKING_URI is `localhost:5000`" in tracked.display.text
    assert steps_by_name(tracked).keys() == {"tiny", "1-tokenizer"}
