"""A real SQLite store in a temporary folder, and run views to upload to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from nanochat.tracking.run_view import RunView


@pytest.fixture
def uri(fresh_database, tmp_path) -> str:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    shutil.copy(fresh_database, path)
    return f"sqlite:///{path}"


class FakeRun:
    """A run with one stage, whose files the test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self.timings = folder / "timings.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, file: Path, steps, name="train/loss", offset=0.0):
        with file.open("a") as out:
            for step in steps:
                out.write(json.dumps({"step": step, "metrics": {name: step + offset}}) + "\n")

    def view(self, status="RUNNING", stage_status="RUNNING", **changes) -> RunView:
        stage = {
            "name": "1-pretrain",
            "link": self.folder / "stage.json",
            "status": stage_status,
            "description": "loss",
            "tags": {"fingerprint": "abc", "host": "here", "pid": "1", "pid_started": "0"},
            "params": {"steps": "10"},
            "streams": (self.metrics, self.timings),
            "metrics": {},
            **changes,
        }
        return RunView(
            name="quick",
            link=self.folder / "run.json",
            status=status,
            description="all",
            tags={"host": "here", "pid": "1", "pid_started": "0"},
            params={"seed": "42"},
            metrics={},
            stages=(RunView(**stage),),
        )


@pytest.fixture
def fake_run(tmp_path) -> FakeRun:
    return FakeRun(tmp_path / "run")
