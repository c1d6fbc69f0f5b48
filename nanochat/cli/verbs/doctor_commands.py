"""The verb `doctor` of `nanochat-run`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path

from nanochat import runtime
from nanochat.errors import PreflightError
from nanochat.plurals import several
from nanochat.runner.doctor.base_folder import examine_base_folder
from nanochat.runner.doctor.finding import Finding
from nanochat.runner.doctor.machine import examine_machine, examine_network
from nanochat.runner.doctor.software import examine_software

_WIDTH = 110
_MARKS = {"ok": "ok", "hint": "hint", "warning": "WARN", "failure": "FAIL"}


def doctor(_options: argparse.Namespace) -> None:
    """Print the state of this machine and of the installation, with a remedy for each problem.

    Raises PreflightError at the end if no recipe could run.
    """
    counts = dict.fromkeys(_MARKS, 0)
    for finding in _examine(runtime.base_dir(), Path.cwd()):
        counts[finding.level] += 1
        head = f"{_MARKS[finding.level]:4}  {finding.name:11}  "
        print(_wrapped(head, finding.text))
        if finding.remedy:
            print(_wrapped(" " * (len(head) - 2) + "> ", finding.remedy), flush=True)
    if counts["failure"]:
        raise PreflightError(
            f"no recipe can run here: {several(counts['failure'], 'failure')}, each with its remedy above"
        )
    print(f"\nrecipes can run here; {several(counts['warning'], 'warning')} and {several(counts['hint'], 'hint')}")


def _examine(base: Path, folder: Path) -> Iterator[Finding]:
    """Yield a finding of each thing that matters for runs under a base folder, started in a working directory."""
    yield from examine_machine(base)
    yield from examine_software(folder)
    yield from examine_base_folder(base)
    yield from examine_network()


def _wrapped(head: str, text: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
