"""Download what stages read from the hub, in the parent, before the first of them begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat.data.sources import fetch, resolve_revision
from nanochat.errors import InterruptedRun, PreflightError
from nanochat.plan.plan import StagePlan
from nanochat.plan.quantities import show_bytes
from nanochat.runner.display import Display
from nanochat.runner.preflight.data_checks import check_inputs
from nanochat.runner.process.interrupts import Interrupts


def fetch_inputs(stages: Sequence[StagePlan], base: Path, *, display: Display, interrupts: Interrupts) -> None:
    """Download all that the stages read, and check it: what preflight could not look at before it was here.

    A run whose chat data lack a column ends now, not after its hours of pretraining.

    Raises:
        PreflightError: something cannot be had, or is not of the form that its stage reads.
        InterruptedRun: as `fetch_sources`.
    """
    from_hub = [stage for stage in stages if any(source.uri is not None for source in stage.sources)]
    for stage in stages:
        fetch_sources(stage, base, display=display, interrupts=interrupts)
    findings = check_inputs(from_hub, base)
    if findings:
        raise PreflightError("\n".join(findings))


def fetch_sources(stage: StagePlan, base: Path, *, display: Display, interrupts: Interrupts) -> dict[str, str]:
    """Download the stage's hub sources where they are not here yet; return the commit of each by source name.

    Raises:
        PreflightError: one cannot be had.
        InterruptedRun: a signal came; what is downloaded is kept, and the next attempt goes on from there.
    """
    commits = {}
    for source in stage.sources:

        def tell(done_bytes: int, total_bytes: int, name: str = source.name) -> None:
            if interrupts.count:
                raise InterruptedRun(f"stopped while downloading `{name}`, what is downloaded is kept")
            text = f"{show_bytes(done_bytes)} of {show_bytes(total_bytes)}"
            display.show_progress(f"download {name}", done_bytes / max(total_bytes, 1), text)

        fetch(source, base=base, offline=stage.execution.offline, progress=tell)
        display.clear_progress()
        commit = resolve_revision(source, base=base, offline=True)
        if commit is not None:
            commits[source.name] = commit
    return commits
