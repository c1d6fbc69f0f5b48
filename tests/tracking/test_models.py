"""Tests of logged models, what was measured on them, and registered models, on a SQLite store."""

from __future__ import annotations

from dataclasses import replace

import pytest

import nanochat
from nanochat.storage.layout import MODEL_FILES
from nanochat.tracking.link import ModelLink, read_link
from nanochat.tracking.mlflow_store import TrackingOutageError, open_store
from nanochat.tracking.models.logged_models import ModelWriter
from nanochat.tracking.sync import Sender

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
LOADS = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
"""What MLflow warns about when it loads models for the first time."""
ANSWER = {"temperature": 0.0, "max_tokens": 4}


@pytest.fixture
def store(uri):
    return open_store(uri, "nanochat")


@pytest.fixture
def load_model(monkeypatch, uri):
    """MLflow's function that loads a model from the test's store."""
    import mlflow  # here, because it takes seconds, in each process that collects tests

    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", None)
    mlflow.set_tracking_uri(uri)
    yield mlflow.pyfunc.load_model
    mlflow.set_tracking_uri(None)


def test_model_is_logged_once_with_its_run_metrics_and_data_sets(store, shelf):
    """Also if the process was killed before it knew the id, and with a second sender."""
    sender = Sender(store)
    sender.send(shelf.view())
    link = ModelLink.read(shelf.model.link)
    ModelLink(key=link.key).save(shelf.model.link)
    run = shelf.folder / "run.json"
    read_link(run).change(run, models_digest="", is_complete=False)
    Sender(store).send(shelf.view())
    (model,) = store.client.search_logged_models([store.experiment_id])
    stage = store.client.get_run(read_link(shelf.folder / "stage.json").run_id)
    assert (model.model_id, model.name, str(model.status)) == (link.model_id, "quick-sft", "READY")
    assert (model.source_run_id, model.params, model.tags["stage"]) == (stage.info.run_id, {"n_layer": "2"}, "sft")
    assert {(m.key, m.value, m.dataset_name, m.dataset_digest) for m in model.metrics} == {
        ("chat_eval/spelling", 0.5, "words", "d" * 32),
        ("chat_eval/core", 0.25, None, None),
    }
    assert len(model.metrics) == 2
    assert [output.model_id for output in stage.outputs.model_outputs] == [model.model_id]
    assert len(store.client.get_metric_history(stage.info.run_id, "chat_eval/spelling")) == 1
    assert len(store.client.search_model_versions("name = 'speller'")) == 1


@LOADS
@pytest.mark.parametrize("is_uploaded", [True, False])
def test_logged_model_answers_as_the_model_does(store, shelf, load_model, is_uploaded):
    """Prompts and messages, uploaded or where it was. An uploaded file takes no space of its own."""
    import pandas  # here, as MLflow above

    Sender(store).send(shelf.view(is_uploaded=is_uploaded))
    loaded = load_model("models:/speller@best")
    model = nanochat.load(shelf.model.folder)
    prompts = ["the cat", "on the mat"]
    answers = [model.chat(prompt, **ANSWER) for prompt in prompts]
    assert all(answers)
    messages = [{"role": "user", "content": prompts[0]}]
    table = pandas.DataFrame({"prompt": prompts})
    for given in (prompts, table, table["prompt"], table.to_numpy()):
        assert loaded.predict(given, params=ANSWER) == answers
    assert loaded.predict({"messages": messages}, params=ANSWER) == answers[:1]
    assert loaded.predict(messages, params=ANSWER) == answers[:1]
    location = store.client.get_logged_model(ModelLink.read(shelf.model.link).model_id).artifact_location
    folder = shelf.folder.parent / "store" / location.partition("/store/")[2] / "model"
    assert folder.is_dir() == is_uploaded
    for name in MODEL_FILES if is_uploaded else ():
        assert (folder / name).samefile(shelf.model.folder / name)


@LOADS
def test_logged_model_with_another_file_is_refused(store, shelf, load_model):
    changed = {**shelf.model.files, "config.json": "0" * 64}
    Sender(store).send(shelf.view(files=changed, is_uploaded=False))
    with pytest.raises(nanochat.errors.PreflightError, match=r"config\.json is not the file that was logged"):
        load_model("models:/speller@best")


def best_of(store, name="speller"):
    return store.client.get_registered_model(name).aliases.get("best")


def test_alias_moves_only_to_a_version_that_meets_its_expectations_and_is_not_worse(store, shelf, tmp_path):
    """At least 0.4 is expected. A version that is as good takes the alias too."""
    seen = []
    for value in (0.3, 0.5, 0.3, 0.6, 0.5, 0.6):
        sender = Sender(store)
        sender.send(shelf.another(tmp_path / f"run{len(seen)}").view(value))
        seen.append((best_of(store), sender.models.notices[-1].rpartition(": ")[2]))
    unmet, worse = "chat_eval.spelling >= 0.4 does not hold", "version 4 is better (chat_eval.spelling 0.6000)"
    moved = {number: f"version {number} of the model `speller` is now `best`" for number in (2, 4, 6)}
    assert seen == [(None, unmet), (2, moved[2]), (2, unmet), (4, moved[4]), (4, worse), (6, moved[6])]


def test_alias_stays_where_it_is_without_expectations(store, shelf):
    sender = Sender(store)
    sender.send(shelf.view(expects=False))
    assert best_of(store) is None
    assert "its recipe has no `expect`" in sender.models.notices[-1]


def test_run_is_registered_later_if_its_recipe_asks_for_it_then(store, shelf):
    """The model is not logged again, and has the metrics once."""
    Sender(store).send(replace(shelf.view(), registration=None))
    Sender(store).send(shelf.view())
    (version,) = store.client.search_model_versions("name = 'speller'")
    (model,) = store.client.search_logged_models([store.experiment_id])
    assert (version.source, version.run_id) == (f"models:/{model.model_id}", model.source_run_id)
    assert (version.tags["fingerprint"], version.tags["expect.chat_eval.spelling"]) == ("abc", "0.5")
    assert len(model.metrics) == 2


def test_model_is_completed_after_outages(store, shelf, monkeypatch):
    """Each step fails once after it was done. Whatever was sent before is sent once."""
    failing = ["_create", "_send_files", "_attach"]

    def break_after(step, done):
        def run(*args, **kwargs):
            result = done(*args, **kwargs)
            if step in failing:
                failing.remove(step)
                raise ConnectionError(f"the server is gone after {step}")
            return result

        return run

    for step in failing:
        monkeypatch.setattr(ModelWriter, step, break_after(step, getattr(ModelWriter, step)))
    sender = Sender(store)
    for step in list(failing):
        with pytest.raises(TrackingOutageError, match=f"the server is gone after {step}"):
            sender.send(shelf.view())
        assert not read_link(shelf.folder / "run.json").is_complete
    sender.send(shelf.view())
    (model,) = store.client.search_logged_models([store.experiment_id])
    assert (str(model.status), len(model.metrics), best_of(store)) == ("READY", 2, 1)
    assert read_link(shelf.folder / "run.json").is_complete


def test_server_without_models_gets_the_rest_of_the_run(store, shelf, monkeypatch):
    """Models are sent once the server has a version that keeps them."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    def fail(*_, **__):
        raise MlflowException("no such address", error_code=ENDPOINT_NOT_FOUND)

    with monkeypatch.context() as patch:
        patch.setattr(type(store.client), "search_logged_models", fail)
        sender = Sender(store)
        link = sender.send(shelf.view())
        assert link.is_complete
        assert sender.refusals == ["quick: models: this MLflow server keeps none, which takes version 3"]
    assert not store.client.search_logged_models([store.experiment_id])
    run = shelf.folder / "run.json"
    read_link(run).change(run, is_complete=False)
    Sender(store).send(shelf.view())
    assert len(store.client.search_logged_models([store.experiment_id])) == 1


def test_logged_models_are_found_in_a_moved_database(store, shelf, uri):
    Sender(store).send(shelf.view())
    old = shelf.folder.parent / "store"
    new = old.rename(shelf.folder.parent / "moved")
    client = open_store(f"sqlite:///{new}/mlflow.db", "nanochat").client
    (model,) = client.search_logged_models([store.experiment_id])
    assert model.artifact_location.startswith(new.as_uri())
    assert client.get_model_version_download_uri("speller", "1") == model.artifact_location
