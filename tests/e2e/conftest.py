"""Runs of a shipped recipe with real stage processes; the test process is their parent."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanochat.runner.pipeline import run_recipe
from nanochat.runner.stage_loop import RunRequest
from nanochat.runner.store.run_catalog import Run

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


class RecordingDisplay:
    """A display that records its lines and calls `on_heartbeat` at each heartbeat of a stage."""

    def __init__(self, on_heartbeat: Callable[[str], object]) -> None:
        self.lines: list[str] = []
        self._on_heartbeat = on_heartbeat

    def log_line(self, text: str) -> None:
        self.lines.append(text)

    def show_progress(self, title: str, fraction: float, text: str) -> None:
        self._on_heartbeat(title)

    def clear_progress(self) -> None:
        pass

    def computed_stages(self) -> list[str]:
        """Return the titles of the stages that were computed, not skipped."""
        done = (re.match(r"(\d-\w+): done", line) for line in self.lines)
        return [match[1] for match in done if match is not None]


@pytest.fixture(scope="session")
def run_dry() -> Callable[..., tuple[Run, RecordingDisplay]]:
    """A function that runs dry_run.yaml under a base folder and returns the run and its display."""

    def run(
        base: Path, *overrides: str, on_heartbeat: Callable[[str], object] = lambda title: None, **changes: Any
    ) -> tuple[Run, RecordingDisplay]:
        display = RecordingDisplay(on_heartbeat)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NANOCHAT_BASE_DIR", str(base))
            request = RunRequest(
                recipe=RECIPES / "dry_run.yaml",
                base=base,
                folder=base,
                command="nanochat-run recipes/dry_run.yaml",
                overrides=("tracking.kind=none", *overrides),
                **changes,
            )
            return run_recipe(request, display), display

    return run
