"""Drop token caches whose tokenizer belongs to no stage that a run refers to.

A cache is only ever a shortcut: whoever needs it again makes it again. One that is being made is kept.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.token_cache.files import FOLDER, LOCK_FILE
from nanochat.runner.store.gc import referenced
from nanochat.storage.files import folder_bytes, sha256_of_file

_TOKENIZER = "tokenizer.model"


@dataclass(frozen=True)
class UnusedCache:
    """A token cache that nothing will read."""

    path: Path
    size_bytes: int


def find_unused_caches(base: Path) -> list[UnusedCache]:
    """Return the token caches of no known tokenizer.

    Raises:
        PreflightError: a run cannot be read, so that what it refers to is not known.
    """
    known = {sha256_of_file(path) for stage in referenced(base) for path in stage.rglob(_TOKENIZER)}
    return [
        UnusedCache(folder, folder_bytes(folder))
        for folder in sorted((base / FOLDER).glob("*"))
        if _tokenizer_of(folder) not in known and not _is_being_made(folder)
    ]


def drop_unused_caches(base: Path) -> list[UnusedCache]:
    """Delete the token caches of no known tokenizer and return them; the raises are those of finding them."""
    return list(_delete(find_unused_caches(base)))


def _delete(caches: list[UnusedCache]) -> Iterator[UnusedCache]:
    for cache in caches:
        # The list of parts goes first, so that a killed deletion leaves a cache that counts as not made.
        for path in sorted(cache.path.glob("*.json")):
            path.unlink()
        shutil.rmtree(cache.path)
        yield cache


def _tokenizer_of(folder: Path) -> str | None:
    try:
        key = json.loads((folder / "key.json").read_text())
    except (OSError, ValueError):
        return None
    found = key.get("tokenizer") if isinstance(key, dict) else None
    return found if isinstance(found, str) else None


def _is_being_made(folder: Path) -> bool:
    try:
        with (folder / LOCK_FILE).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
