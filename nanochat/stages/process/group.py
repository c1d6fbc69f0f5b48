"""The processes that train together: this one's place among them, and the few things they tell each other.

Rows, gradients and votes travel elsewhere (data loaders, the training step); here is how a process joins, and what must
be the same everywhere before it goes on.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from nanochat.errors import PreflightError, StageError

if TYPE_CHECKING:  # importing MLX must wait until a BLAS is loaded
    import mlx.core as mx

ENDINGS = "endings"
"""Folder in a stage's folder: a file for each process that ended by itself, its exit code inside."""
STOP = "stop"
"""File in a stage's folder that asks all processes to save and stop."""
UNREADABLE = -1


@dataclass(frozen=True)
class World:
    """This process's rank among `size`; the default is a process that is alone."""

    rank: int = 0
    size: int = 1
    group: mx.distributed.Group | None = None

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files: one does."""
        return self.rank == 0

    def gather(self, value: int) -> list[int]:
        """Return each rank's value (31 bits); every process must call it at the same point."""
        if self.group is None:
            return [value]
        import mlx.core as mx

        told = mx.distributed.all_gather(mx.array([value], dtype=mx.int32), group=self.group)
        return cast(list[int], told.tolist())

    def wait(self) -> None:
        """Return once every process has come to this point."""
        self.gather(0)

    def require_same(self, value: int, what: str) -> None:
        """Go on where every rank has the same value.

        Raises:
            StageError: they differ; `what` names the value.
        """
        told = self.gather(value)
        if len(set(told)) > 1:
            raise StageError(f"the {self.size} processes do not agree on {what}: {', '.join(map(str, told))}")


def join(backend: str, *, job_digest: int, job_path: Path) -> World:
    """Return this process's place among those that `mlx.launch` started, once all of them are here.

    Args:
        backend: as `mx.distributed.init` names it.
        job_digest: of the job file's content, 31 bits; `UNREADABLE` where the file is not here.
        job_path: the job file, for the message.

    Raises:
        PreflightError: the processes do not see the same job file, or cannot find each other.
    """
    import mlx.core as mx

    try:
        group = mx.distributed.init(strict=True, backend=backend)
    except (RuntimeError, ValueError) as error:
        raise PreflightError(f"`run.distributed.backend`: {backend} does not start here: {error}") from error
    world = World(group.rank(), group.size(), group)
    told = world.gather(job_digest)
    if UNREADABLE in told or len(set(told)) > 1:
        apart = [str(rank) for rank, digest in enumerate(told) if digest == UNREADABLE or digest != told[0]]
        raise PreflightError(
            f"process {' and '.join(apart)} of {world.size} (counted from 0) do not see the stage's folder "
            f"{job_path.parent}: several hosts need the base folder (NANOCHAT_BASE_DIR) on a file system they share"
        )
    return world


def write_ending(stage_dir: Path, code: int) -> None:
    """Note in the stage's folder that this process ended by itself, and how."""
    path = stage_dir / ENDINGS / f"{socket.gethostname()}-{os.getpid()}"
    path.write_text(f"{code}\n", encoding="utf-8")
