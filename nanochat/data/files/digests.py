"""Digests of files, remembered by path, size and modification time so that unchanged files are not read again.

The digest of a small jsonl or text file can leave out the lines that reading skips, so that removing a bad line does
not change it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.files.file_kinds import kind_of
from nanochat.data.files.formats.streams import raw_lines
from nanochat.storage.checked_json import read_checked, write_checked
from nanochat.storage.file_errors import is_no_permission
from nanochat.storage.files import sha256_of_file

MEMORY_FILE = "file_digests.json"
"""The name of the memory file under the base folder."""

# A file modified this recently could change again without a different modification time, because the clock is coarse.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class LineFilter:
    """Decides which lines of jsonl and text files count in a digest. `name` identifies the rule in the memory file."""

    name: str
    is_usable: Callable[[Path, bytes], bool]


DigestOf = Callable[[Path, LineFilter | None], str]


@contextmanager
def remembered_digests(memory: Path, *, are_loaded: bool = False) -> Iterator[DigestOf]:
    """Yield a function that returns the sha256 (hex) of a file, or of its usable lines.

    If the files are about to be loaded, each is read, and what was remembered of it is corrected: from then on, one
    that changed without a new size or time is known to be damaged. Several threads may call the function.

    At the end, new digests are added to the file `memory`. If it is damaged, it counts as empty; if it may not be
    written, nothing is remembered.
    """
    content = read_checked(memory)
    known: dict[str, list[object]] = json.loads(content) if content is not None else {}
    new: dict[str, list[object]] = {}

    def digest_of(path: Path, lines: LineFilter | None) -> str:
        lines = lines if _has_plain_lines(path) else None
        status, key = path.stat(), str(path.absolute()) + (f" {lines.name}" if lines is not None else "")
        stamp: list[object] = [status.st_size, status.st_mtime_ns]
        entry = new.get(key, None if are_loaded else known.get(key))
        if isinstance(entry, list) and entry[:2] == stamp and isinstance(entry[-1], str):
            return entry[-1]
        digest = sha256_of_file(path) if lines is None else _sha256_of_lines(path, lines)
        if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            new[key] = [*stamp, digest]
        return digest

    try:
        yield digest_of
    finally:
        if not new.items() <= known.items():
            _remember(memory, {**known, **new})


def _remember(memory: Path, digests: dict[str, list[object]]) -> None:
    try:
        write_checked(memory, json.dumps(digests), durable=False)
    except OSError as error:
        if not is_no_permission(error):
            raise


def _has_plain_lines(path: Path) -> bool:
    """Return whether a file is uncompressed jsonl or text. Planning must be fast, so it decompresses nothing."""
    kind = kind_of(path)
    return kind is not None and kind.reader in ("json lines", "text lines") and kind.compression is None


def _sha256_of_lines(path: Path, lines: LineFilter) -> str:
    digest = hashlib.sha256()
    for raw in raw_lines(path, 0):
        if not raw.strip() or lines.is_usable(path, raw):
            digest.update(raw)
    return digest.hexdigest()


class SeenTexts:
    """The texts that were added, as digests of 16 bytes: each takes about 100 bytes of memory.

    Two different texts have the same digest with a probability that can be neglected (1e-23 for 100 million texts).
    """

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self.duplicates = 0

    def add(self, text: str) -> bool:
        """Add a text and return whether it is new."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        is_new = digest not in self._digests
        self._digests.add(digest)
        self.duplicates += not is_new
        return is_new
