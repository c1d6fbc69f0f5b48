"""The processes that train one stage together: this process's rank, barriers, and checks that all of them agree.

Not here: rows, gradients and votes, which the data loaders and the training step exchange themselves.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from nanochat.errors import PreflightError, StageError
from nanochat.storage.files import write_text
from nanochat.storage.layout import StageFolder

if TYPE_CHECKING:  # importing MLX must wait until a BLAS is loaded
    import mlx.core as mx

NO_JOB_FILE = -1


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among `size` processes. The default is a process that trains alone."""

    rank: int = 0
    size: int = 1
    mlx_group: mx.distributed.Group | None = None

    @property
    def is_writer(self) -> bool:
        """Whether this process writes files: only rank 0 does."""
        return self.rank == 0

    def gather(self, value: int) -> list[int]:
        """Return the value (31 bits) of every rank. All processes must call this at the same point."""
        if self.mlx_group is None:
            return [value]
        import mlx.core as mx

        values = mx.distributed.all_gather(mx.array([value], dtype=mx.int32), group=self.mlx_group)
        return cast(list[int], values.tolist())

    def barrier(self) -> None:
        """Return once every process has reached this point."""
        self.gather(0)

    def require_same(self, value: int, what: str) -> None:
        """Raise a StageError unless every rank has the same value; `what` names the value in the message."""
        values = self.gather(value)
        if len(set(values)) > 1:
            raise StageError(f"the {self.size} processes do not agree on {what}: {', '.join(map(str, values))}")


def join_group(backend: str, *, job_digest: int, job_path: Path) -> ProcessGroup:
    """Return this process's place among those that `mlx.launch` started, once all of them have joined.

    `job_digest` is 31 bits of a hash of the job file, or `NO_JOB_FILE` if this process cannot read it. A PreflightError
    says that the processes do not see the same job file, or cannot connect to each other.
    """
    import mlx.core as mx

    try:
        mlx_group = mx.distributed.init(strict=True, backend=backend)
    except (RuntimeError, ValueError) as error:
        raise PreflightError(f"`run.distributed.backend`: {backend} does not start here: {error}") from error
    group = ProcessGroup(mlx_group.rank(), mlx_group.size(), mlx_group)
    digests = group.gather(job_digest)
    if NO_JOB_FILE in digests or len(set(digests)) > 1:
        ranks = [str(rank) for rank, digest in enumerate(digests) if digest == NO_JOB_FILE or digest != digests[0]]
        raise PreflightError(
            f"process {' and '.join(ranks)} of {group.size} (counted from 0) do not see the stage's folder "
            f"{job_path.parent}: several hosts need the base folder (NANOCHAT_BASE_DIR) on a file system they share"
        )
    return group


def write_exit_code(folder: StageFolder, code: int) -> None:
    """Record in the stage's folder that this process exited by itself, and with which code."""
    path = folder.exit_codes / f"{socket.gethostname()}-{os.getpid()}"
    write_text(path, f"{code}\n", durable=False)
