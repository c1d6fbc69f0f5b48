"""A real SQLite store in a temporary folder, and run views to upload to it."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.storage.files import sha256_of_file
from nanochat.storage.layout import MODEL_FILES
from nanochat.tracking.run_view import (
    Dataset,
    Expectation,
    Measurement,
    ModelView,
    Registration,
    RunView,
    Status,
)


@pytest.fixture
def uri(fresh_database: Path, tmp_path: Path) -> str:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(fresh_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def quick_creation(fresh_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow copies the tables of a new database, because its migrations take more than a second to create them."""

    def copy_tables(engine: Any) -> None:
        with closing(sqlite3.connect(fresh_database)) as source, engine.connect() as target:
            source.backup(target.connection.driver_connection)
            target.exec_driver_sql("delete from experiments")
            target.commit()

    monkeypatch.setattr("mlflow.store.db.utils._initialize_tables", copy_tables)


class FakeRun:
    """A run with one stage, whose files the test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.timings = folder / "timings.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, file: Path, steps: Iterable[int], name: str = "train/loss", offset: float = 0.0) -> None:
        with file.open("a") as out:
            for step in steps:
                out.write(json.dumps({"step": step, "metrics": {name: step + offset}}) + "\n")

    def view(self, status: Status = "RUNNING", stage_status: Status = "RUNNING", **changes: Any) -> RunView:
        owner = {"host": "box", "pid_machine": "here", "pid": "1", "pid_started": "0"}
        stage = RunView(
            name="1-pretrain",
            link=self.folder / "stage.json",
            status=stage_status,
            description="loss",
            tags={"fingerprint": "abc", **owner},
            params={"steps": "10"},
            streams=(self.metrics, self.timings),
            metrics={},
        )
        return RunView(
            name="quick",
            link=self.folder / "run.json",
            status=status,
            description="all",
            tags=owner,
            params={"seed": "42"},
            metrics={},
            stages=(replace(stage, **changes),),
        )


@pytest.fixture
def fake_run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "run")


class Shelf:
    """A run with a chat model, one result, and an expectation."""

    def __init__(self, fake_run: FakeRun, model_folder: Path) -> None:
        self.words = Dataset(name="words", digest="d" * 64, source="builtin", context="evaluation")
        self.run, self.folder = fake_run, fake_run.folder
        self.model = ModelView(
            name="quick-sft",
            link=self.folder / "sft" / "logged_model.json",
            run_link=self.folder / "stage.json",
            step=9,
            tags={"stage": "sft"},
            params={"n_layer": "2"},
            folder=model_folder,
            stage="stages/sft/abc",
            files={name: sha256_of_file(model_folder / name) for name in MODEL_FILES},
            is_chat=True,
            is_uploaded=True,
        )

    def another(self, folder: Path) -> Shelf:
        """Return another run with the same model."""
        return Shelf(FakeRun(folder), self.model.folder)

    def view(self, value: float = 0.5, *, expects: bool = True, **changes: Any) -> RunView:
        measured = {"chat_eval/spelling": self.words, "chat_eval/core": None}
        expected = Expectation(metric="chat_eval.spelling", condition=">= 0.4", value=value, is_met=value >= 0.4)
        view = self.run.view("FINISHED", "FINISHED", metrics={"chat_eval/spelling": value, "chat_eval/core": 0.25})
        return replace(
            view,
            models=(replace(self.model, **changes),),
            measurements=(
                Measurement(run_link=self.folder / "stage.json", model_link=self.model.link, metrics=measured),
            ),
            registration=Registration(
                name="speller",
                model=replace(self.model, **changes),
                tags={"fingerprint": "abc"},
                description="a speller",
                expectations=(expected,) if expects else (),
            ),
        )


@pytest.fixture
def shelf(fake_run: FakeRun, model_folder: Path) -> Shelf:
    return Shelf(fake_run, model_folder)
