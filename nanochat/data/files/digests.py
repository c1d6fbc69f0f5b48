"""Digests of files, remembered by path, size and modification time so that unchanged files are not read again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nanochat.storage.files import sha256_of_file, write_text

MEMORY_FILE = "file_digests.json"
"""The name of the memory file under the base folder."""

# A file modified this recently could change again without a different modification time, because the clock is coarse.
_SETTLED_NS = 2_000_000_000


@contextmanager
def remembered_digests(memory: Path) -> Iterator[Callable[[Path], str]]:
    """Yield a function that returns the sha256 (hex) of a file.

    At the end, new digests are added to the file `memory`. If it cannot be read, it counts as empty.
    """
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    new: dict[str, list[object]] = {}

    def digest_of(path: Path) -> str:
        status, key = path.stat(), str(path.absolute())
        stamp: list[object] = [status.st_size, status.st_mtime_ns]
        entry = new.get(key, known.get(key))
        if isinstance(entry, list) and entry[:2] == stamp and isinstance(entry[-1], str):
            return entry[-1]
        digest = sha256_of_file(path)
        if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            new[key] = [*stamp, digest]
        return digest

    try:
        yield digest_of
    finally:
        if new:
            write_text(memory, json.dumps({**known, **new}), durable=False)
