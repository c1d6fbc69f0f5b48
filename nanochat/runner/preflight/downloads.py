"""Download and convert everything that the stages read, and check it, before the first stage begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from nanochat.data.ingest.pending import convertible_files, is_ready
from nanochat.data.ingest.store import copy_names, unconverted_files
from nanochat.errors import PreflightError
from nanochat.plan.plan import StagePlan
from nanochat.runner.display import Display
from nanochat.runner.preflight.data_checks import check_inputs
from nanochat.runner.process.convert_sources import convert_files
from nanochat.runner.process.fetch_sources import fetch_sources
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store.locks import claims
from nanochat.storage.files import write_text
from nanochat.storage.layout import RunFolder


def fetch_inputs(
    stages: Sequence[StagePlan], base: Path, folder: RunFolder, *, display: Display, interrupts: Interrupts
) -> None:
    """Download and convert what the stages read, and check its format, which preflight could not do before.

    Chat data without the required column stop the run here rather than after hours of pretraining. The list of
    converted files in `folder` says that the run needs them.

    Raises:
        PreflightError: a source cannot be downloaded, or does not have the format that its stage reads.
        StageError: a file that is to be converted is damaged.
        InterruptedRun: a signal arrived, see `fetch_sources` and `convert_files`.
    """
    unchecked = [stage for stage in stages if not all(is_ready(source, base=base) for source in stage.sources)]
    for stage in stages:
        fetch_sources(stage, base, display=display, interrupts=interrupts)
    paths = convertible_files((source for stage in stages for source in stage.sources), base=base)
    if paths:
        with claims(base):
            write_text(folder.copies, json.dumps(copy_names(paths, base=base)))
        convert_files(unconverted_files(paths, base=base), base, display=display, interrupts=interrupts)
    problems = check_inputs(unchecked, base)
    if problems:
        raise PreflightError("\n".join(problems))
