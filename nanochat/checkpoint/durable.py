"""Files and folders that appear whole or not at all, and survive a power cut once they appeared."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

_SCRATCH_PREFIX = ".writing-"
_BLOCK_BYTES = 1 << 20


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty scratch folder that becomes `target` when the block ends without an exception.

    Every file is synced to disk before the rename, and the parent folder after it. What was at `target` is replaced;
    scratch folders left behind by a killed process are removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{_SCRATCH_PREFIX}*"):
        shutil.rmtree(leftover)
    scratch = target.with_name(f"{_SCRATCH_PREFIX}{target.name}")
    scratch.mkdir()
    try:
        yield scratch
        for path in sorted(scratch.rglob("*")):
            sync(path)
        sync(scratch)
        if target.exists():
            # Between these two renames there is no target: a kill here costs what is being replaced, nothing else.
            target.rename(target.with_name(f"{_SCRATCH_PREFIX}old-{target.name}"))
        scratch.rename(target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(target.with_name(f"{_SCRATCH_PREFIX}old-{target.name}"), ignore_errors=True)


def write_arrays(path: Path, named: Mapping[str, mx.array]) -> None:
    """Write a safetensors file; the same arrays give the same bytes.

    Raises:
        OSError: it cannot be written. MLX says so by a RuntimeError without a reason, which is nearly always a full
            disk: the error is ENOSPC.
    """
    try:
        mx.save_safetensors(str(path), {name: named[name] for name in sorted(named)})
    except RuntimeError as error:
        if "[write]" not in str(error):
            raise
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {error}", str(path)) from error


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
