"""A bench for sweeps: a recipe with a grid of three cells of a child process that only pretends to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nanochat.runner.store.run_state import RunTracking
from nanochat.runner.store.sweep_state import SweepState, read_sweep
from nanochat.runner.sweeps.preparing.open_sweep import open_sweep
from nanochat.runner.sweeps.preparing.prepare_sweep import prepare_sweep
from nanochat.runner.sweeps.results.cell_results import CellResult, read_results
from nanochat.runner.sweeps.running.cell_runner import SweepRequest
from nanochat.runner.sweeps.running.run_sweep import run_sweep
from nanochat.storage.layout import SweepFolder, sweep_folders

GRID = """\
sweep:
  over:
    pretrain.horizon.steps: [4, 5, 6]
  until: base_eval
  rank_by: {base_eval.bpb: min}
"""


class SweepBench:
    """A bench whose recipe has a sweep."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        self.write(GRID)

    def write(self, sweep: str) -> None:
        """Replace the sweep of the recipe."""
        recipe = self.bench.recipe
        recipe.write_text(recipe.read_text().partition("sweep:\n")[0] + sweep)

    def run(self, *overrides: str, **changes: Any) -> SweepFolder:
        """Run the sweep with the child that pretends."""
        self.bench.display = self.bench.make_display()
        return run_sweep(self.bench.load(*overrides), self.request(**changes), self.bench.display)

    def request(self, **changes: Any) -> SweepRequest:
        """Return what the command line would ask for."""
        return SweepRequest(
            base=self.bench.base,
            folder=self.bench.folder,
            command="nanochat-run tiny.yaml",
            child_command=self.bench.child_command,
            **changes,
        )

    def open(self) -> SweepFolder:
        """Write the state of the sweep, as running it would, and run nothing."""
        prepared = prepare_sweep(self.bench.load(), self.bench.base)
        return open_sweep(prepared, base=self.bench.base, tracking=RunTracking(kind="none"))[0]

    def state(self) -> SweepState:
        """Return the state of the latest sweep."""
        state = read_sweep(sweep_folders(self.bench.base)[-1])
        assert state is not None
        return state

    def results(self) -> list[CellResult]:
        """Return the results of the latest sweep."""
        return read_results(self.state(), self.bench.base)

    def table(self) -> list[str]:
        """Return the table of results that the last command printed."""
        lines: list[str] = self.bench.display.text.splitlines()
        start = max(i for i, line in enumerate(lines) if line.startswith("cell  "))
        return lines[start:]


@pytest.fixture
def sweep(bench: Any, monkeypatch: pytest.MonkeyPatch) -> SweepBench:
    """A bench of three cells, which draws no pictures."""
    monkeypatch.setattr("nanochat.runner.sweeps.results.sweep_report._draw", lambda *given: [])
    return SweepBench(bench)


@pytest.fixture
def calls(bench: Any) -> Callable[[], list[str]]:
    """Return a function that returns the stages that ran since its last call."""
    found: Callable[[], list[str]] = bench.calls
    return found
