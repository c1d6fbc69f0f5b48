"""A real SQLite store in a temporary folder, and run views to upload to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.tracking.run_view import RunView, Status


@pytest.fixture
def uri(fresh_database: Path, tmp_path: Path) -> str:
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
