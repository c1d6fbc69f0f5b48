"""All that `nanochat-run doctor` says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nanochat.runner.doctor.base_folder import examine_base_folder
from nanochat.runner.doctor.diagnosis import Diagnosis
from nanochat.runner.doctor.machine import examine_machine
from nanochat.runner.doctor.network import examine_network
from nanochat.runner.doctor.software import examine_software


def examine(base: Path, folder: Path) -> Iterator[Diagnosis]:
    """Yield a diagnosis of each thing that matters for runs under a base folder, started in a working directory."""
    yield from examine_machine(base)
    yield from examine_software(folder)
    yield from examine_base_folder(base)
    yield from examine_network()
