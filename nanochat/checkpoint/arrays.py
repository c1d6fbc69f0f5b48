"""Writes named MLX arrays as safetensors files."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from nanochat.storage.files import atomic_write


def write_arrays(
    path: Path, named: Mapping[str, mx.array], *, metadata: Mapping[str, str] | None = None, durable: bool = True
) -> None:
    """Write a safetensors file; see `storage.files.atomic_write`. The same arrays give the same bytes.

    If the folder cannot be written to, this raises the OSError that says why. If writing fails later, MLX raises a
    RuntimeError without a reason. It is nearly always a full disk, so this raises an OSError with ENOSPC.
    """
    with atomic_write(path, durable=durable) as scratch:
        scratch.touch()
        try:
            arrays = {name: mx.contiguous(named[name]) for name in sorted(named)}
            mx.save_safetensors(str(scratch), arrays, dict(metadata) if metadata is not None else None)
        except RuntimeError as error:
            if "[write]" not in str(error):
                raise
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {error}", str(path)) from error
