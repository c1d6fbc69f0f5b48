"""Tests that a run is refused before its first stage if MLflow could never keep it."""

from __future__ import annotations

import re

import pytest

from nanochat.errors import PreflightError


@pytest.fixture
def tracked(bench):
    bench.recipe.write_text(bench.recipe.read_text().replace("kind: none", "kind: mlflow"))
    return bench


def refusal(bench, *overrides) -> str:
    with pytest.raises(PreflightError) as caught:
        bench.run(*overrides)
    assert bench.calls() == []
    return str(caught.value)


def test_wrong_address_in_the_environment_is_refused(tracked, monkeypatch):
    """The recipe's own addresses are checked with the recipe."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "localhost:5000")
    text = refusal(tracked)
    assert "tracking: MLFLOW_TRACKING_URI is `localhost:5000`: " in text
    assert "write `http://localhost:5000`" in text


def test_wrong_address_is_shown_without_its_password(tracked, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "me:hunter2@localhost:5000")
    assert "hunter2" not in refusal(tracked)


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("htp://host:5000", r"tracking.uri is `htp://host:5000`: MLflow keeps runs on a server or in a database"),
        ("mysql://host/runs", r"pip install 'mysqlclient'"),
    ],
)
def test_scheme_without_a_store_or_its_driver_is_refused_with_the_remedy(tracked, monkeypatch, uri, remedy):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert re.search(remedy, refusal(tracked, f"tracking.uri={uri}"))


def test_database_that_cannot_exist_is_refused(tracked):
    """It is a folder, lies in a file, or is a file of another kind."""
    folder = tracked.folder
    (folder / "file").write_text("not a database, but longer than the header of one")
    (folder / "runs").mkdir()
    assert f"`sqlite:///{folder}/runs/mlflow.db`" in refusal(tracked, "tracking.uri=sqlite:///runs")
    assert f"{folder}/file is not an SQLite database" in refusal(tracked, "tracking.uri=sqlite:///file")
    assert f"because {folder}/file is a file" in refusal(tracked, "tracking.uri=sqlite:///file/runs.db")


def test_database_in_a_read_only_folder_is_refused(tracked, monkeypatch):
    """SQLite writes a journal beside the database."""
    database = tracked.folder / "runs.db"
    database.touch()
    checks = "nanochat.runner.preflight.tracking_checks.os.access"
    monkeypatch.setattr(checks, lambda path, _: path != tracked.folder)
    text = refusal(tracked, "tracking.uri=sqlite:///runs.db")
    assert f"tracking: sqlite:///{database} cannot be written: no permission for {tracked.folder};" in text


def test_tag_that_the_runner_sets_and_long_experiment_are_refused(tracked, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "e" * 501)
    text = refusal(tracked, "tracking.tags={host: mine, cached.pretrain: x, fine: y}")
    assert re.findall("sets the tag `(.*?)`", text) == ["host", "cached.pretrain"]
    assert "MLFLOW_EXPERIMENT_NAME has 501 characters" in text
