"""Runs of a shipped recipe with real stage processes; the test process is their parent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanochat.recipe.load import load_recipe
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.preflight.run_context import RunRequest
from nanochat.runner.store.run_catalog import Run

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.fixture(scope="session")
def run_dry(make_display: Callable[[], Any]) -> Callable[..., tuple[Run, Any]]:
    """A function that runs dry_run.yaml under a base folder and returns the run and its display."""

    def run(
        base: Path, *overrides: str, on_progress: Callable[[str], object] = lambda title: None, **changes: Any
    ) -> tuple[Run, Any]:
        display = make_display()
        display.on_progress = on_progress
        loaded = load_recipe(RECIPES / "dry_run.yaml", ("tracking.kind=none", *overrides))
        request = RunRequest(base=base, folder=base, command="nanochat-run recipes/dry_run.yaml", **changes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NANOCHAT_BASE_DIR", str(base))
            return run_recipe(loaded, request, display), display

    return run
