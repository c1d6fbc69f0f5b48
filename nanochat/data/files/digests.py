"""Digests of files, remembered by path, size and time of change so that nothing large is hashed twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType

from nanochat.storage.files import sha256_of_file, write_text

MEMORY_FILE = "file_digests.json"
"""Under the base folder."""

# A file changed so recently may change again within the clock's grain without looking different.
_SETTLED_NS = 2_000_000_000


class FileDigests:
    """A context in which digests are looked up; what was new is written to the memory file at its end."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, list[object]] = {}
        self._changed = False

    def __enter__(self) -> FileDigests:
        """Read the memory; an unreadable one counts as empty."""
        try:
            known = json.loads(self._memory.read_text())
        except (OSError, ValueError):
            known = {}
        self._known = known if isinstance(known, dict) else {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what was new, at once or not at all."""
        if not self._changed:
            return
        write_text(self._memory, json.dumps(self._known), durable=False)

    def of(self, path: Path) -> str:
        """Return the sha256 (hex) of a file's content."""
        status = path.stat()
        key = str(path.absolute())
        stamp = [status.st_size, status.st_mtime_ns]
        known = self._known.get(key)
        if isinstance(known, list) and known[:2] == stamp and isinstance(known[-1], str):
            return known[-1]
        digest = sha256_of_file(path)
        if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            self._known[key] = [*stamp, digest]
            self._changed = True
        return digest
