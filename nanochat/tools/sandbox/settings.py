"""The settings that a sandbox receives when it starts: limits, isolation, folder.

Named tuples, because the sandbox's process imports this module for every program, and dataclasses take long to import.
"""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

Isolation = Literal["namespaces", "landlock", "seatbelt", "none"]
"""What keeps the program from the rest of the machine. `run` describes each."""

MAX_FILES = 1024
"""How many files a program may have at a time."""


class Limits(NamedTuple):
    """How much a program may use. The tests, in their own process, may use as much again."""

    wall_seconds: float = 5.0
    """For program and tests together, counted from when the sandbox is ready."""
    cpu_seconds: int = 5
    memory_bytes: int = 512 * 2**20
    """Address space of the process."""
    file_bytes: int = 4 * 2**20
    """Limit for each file, and roughly for all files together."""
    output_bytes: int = 64 * 2**10
    """How much is kept of standard output and of standard error: half of it from the start, half from the end."""
    open_files: int = 32
    threads: int = 32


class Settings(NamedTuple):
    """What the supervisor reads from its command line. Nothing here may depend on the tests."""

    isolation: Isolation
    folder: str
    """The program's own folder."""
    limits: Limits

    @staticmethod
    def load(text: str) -> Settings:
        """Return the settings that were written as JSON."""
        isolation, folder, limits = json.loads(text)
        return Settings(isolation, folder, Limits(*limits))
