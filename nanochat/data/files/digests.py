"""Digests of files, remembered by path, size and modification time so that unchanged files are not read again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType

from nanochat.storage.files import sha256_of_file, write_text

MEMORY_FILE = "file_digests.json"
"""The name of the memory file under the base folder."""

# A file modified this recently could change again without a different modification time, because the clock is coarse.
_SETTLED_NS = 2_000_000_000


class FileDigests:
    """A context manager that looks digests up in the memory file, and adds new ones to it at the end."""

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, list[object]] = {}
        self._changed = False

    def __enter__(self) -> FileDigests:
        """Read the memory file; an unreadable one counts as empty."""
        try:
            known = json.loads(self._memory.read_text())
        except (OSError, ValueError):
            known = {}
        self._known = known if isinstance(known, dict) else {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the memory file if there are new digests."""
        if self._changed:
            write_text(self._memory, json.dumps(self._known), durable=False)

    def of(self, path: Path) -> str:
        """Return the sha256 (hex) of a file."""
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
