"""Download everything that the stages read, and check it, before the first stage begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanochat.errors import PreflightError
from nanochat.plan.plan import StagePlan
from nanochat.runner.display import Display
from nanochat.runner.preflight.data_checks import check_inputs
from nanochat.runner.process.fetch_sources import fetch_sources
from nanochat.runner.process.interrupts import Interrupts


def fetch_inputs(stages: Sequence[StagePlan], base: Path, *, display: Display, interrupts: Interrupts) -> None:
    """Download what the stages read and check its format, which preflight could not do before it was on disk.

    Chat data without the required column stop the run here rather than after hours of pretraining.

    Raises:
        PreflightError: a source cannot be downloaded, or does not have the format that its stage reads.
        InterruptedRun: a signal arrived, see `fetch_sources`.
    """
    from_hub = [stage for stage in stages if any(source.uri is not None for source in stage.sources)]
    for stage in stages:
        fetch_sources(stage, base, display=display, interrupts=interrupts)
    problems = check_inputs(from_hub, base)
    if problems:
        raise PreflightError("\n".join(problems))
