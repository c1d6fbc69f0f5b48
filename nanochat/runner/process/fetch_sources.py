"""Download the hub data sets that a stage reads."""

from __future__ import annotations

from pathlib import Path

from nanochat.data.sources import fetch, resolve_revision
from nanochat.errors import InterruptedRun
from nanochat.plan.plan import StagePlan
from nanochat.plan.quantities import show_bytes
from nanochat.runner.display import Display
from nanochat.runner.process.interrupts import Interrupts


def fetch_sources(stage: StagePlan, base: Path, *, display: Display, interrupts: Interrupts) -> dict[str, str]:
    """Download the stage's hub sources that are not on disk yet. Return the commit of each one by source name.

    Raises:
        PreflightError: a source cannot be downloaded.
        InterruptedRun: a signal arrived. Downloaded parts are kept, and the next attempt continues from them.
    """
    commits = {}
    for source in stage.sources:

        def on_progress(done_bytes: int, total_bytes: int, name: str = source.name) -> None:
            if interrupts.count:
                raise InterruptedRun(f"stopped while downloading `{name}`, the downloaded part is kept")
            text = f"{show_bytes(done_bytes)} of {show_bytes(total_bytes)}"
            display.show_progress(f"download {name}", done_bytes / max(total_bytes, 1), text)

        fetch(source, base=base, offline=stage.execution.offline, progress=on_progress)
        display.clear_progress()
        commit = resolve_revision(source, base=base, offline=True)
        if commit is not None:
            commits[source.name] = commit
    return commits
