"""Runs of a shipped recipe through real stages, in this process as the parent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nanochat.runner.pipeline import run_recipe
from nanochat.runner.stage_loop import RunRequest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


class Watcher:
    """A display that keeps lines and calls `on_beat` at each heartbeat of a stage."""

    def __init__(self, on_beat=lambda title: None) -> None:
        self.lines: list[str] = []
        self._on_beat = on_beat

    def log_line(self, text: str) -> None:
        self.lines.append(text)

    def show_progress(self, title: str, fraction: float, text: str) -> None:
        self._on_beat(title)

    def clear_progress(self) -> None:
        pass

    def ran(self) -> list[str]:
        """Return the titles of the stages that were computed."""
        done = (re.match(r"(\d-\w+): done", line) for line in self.lines)
        return [match[1] for match in done if match is not None]


@pytest.fixture(scope="session")
def runner():
    """Return a function that runs dry_run.yaml under a base folder and returns the run and what was shown."""

    def run(base: Path, *overrides: str, on_beat=lambda title: None, **changes):
        watcher = Watcher(on_beat)
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
            return run_recipe(request, watcher), watcher

    return run
