"""Parallel download of files. Each is resumed if it was cut off, verified, and visible only when it is complete."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from nanochat.data.hub.access import explain_refusal
from nanochat.data.hub.listing import RemoteFile
from nanochat.data.places.attempts import StatusError
from nanochat.data.places.connection import Place
from nanochat.data.places.transfer import Download, Progress, sha256_if_equal, transfer
from nanochat.errors import PreflightError
from nanochat.storage.files import make_folder, move_into_place, sync

_WORKERS = 6


def download(
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    parts: Path,
    base_url: str | None,
    token: str | None,
    progress: Progress | None,
    find_copy: Callable[[RemoteFile], Path | None],
) -> dict[str, str]:
    """Download the files that are not in `folder` yet, and return the sha256 of each file by its path.

    Args:
        files: the files, with the digests that they must have.
        folder: where they go.
        parts: the folder of incomplete files.
        base_url: the address that the files' paths follow; None forbids connections.
        token: sent along, if it is not None.
        progress: receives the progress.
        find_copy: returns a file of this machine that should have the same content. It is verified and linked to.

    Raises:
        PreflightError: a file cannot be downloaded or is damaged at every attempt; what was received is kept.
    """
    job = _Job(parts, base_url, token, sum(file.size for file in files), progress, find_copy)
    with ThreadPoolExecutor(_WORKERS) as pool:
        futures = {file.path: pool.submit(_fetch, job, file, folder / file.path) for file in files}
        try:
            return {path: future.result() for path, future in futures.items()}
        except BaseException:
            job.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@dataclass
class _Job:
    """The common state of the workers: address, token, bytes received so far, and whether to stop."""

    parts: Path
    base_url: str | None
    token: str | None
    total_bytes: int
    progress: Progress | None
    find_copy: Callable[[RemoteFile], Path | None]
    stopped: threading.Event = field(default_factory=threading.Event)
    _received: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, file: RemoteFile, size: int) -> None:
        """Report that the first `size` bytes of a file have been received."""
        with self._lock:
            self._received[file.path] = size
            if self.progress is not None:
                self.progress(sum(self._received.values()), self.total_bytes)


def _fetch(job: _Job, file: RemoteFile, target: Path) -> str:
    """Return the sha256 of the file at `target`, after downloading it if it is missing or damaged."""
    try:
        make_folder(target.parent)
        digest = sha256_if_equal(target, file.content) if target.is_file() else None
        digest = digest or _link_copy(job, file, target) or _download(job, file, target)
        sync(target)  # another process may have made the file
        sync(target.parent)
    except OSError as error:
        raise PreflightError(f"{target}: cannot be written ({error.strerror}); is the disk full?") from error
    job.report(file, file.size)
    return digest


def _download(job: _Job, file: RemoteFile, target: Path) -> str:
    if job.base_url is None:
        raise PreflightError(f"{file.path}: no undamaged copy on this machine; run once with the network")
    place = Place(f"{job.base_url}/{quote(file.path)}", job.token)
    # The digest is part of the name: if the file changes, older bytes are not mixed with newer ones.
    part = job.parts / hashlib.sha256(f"{file.path}\0{file.digest}".encode()).hexdigest()
    download = Download(
        place,
        part,
        file.content,
        repeats_damaged=True,
        explain=lambda error: _explain(job, error),
        on_bytes=lambda have, _: job.report(file, have),
        stopped=job.stopped,
    )
    digest = transfer(download)
    move_into_place(part, target)
    return digest


def _link_copy(job: _Job, file: RemoteFile, target: Path) -> str | None:
    """Make `target` a link to a verified copy on this machine, and return its sha256; None if there is none.

    A hard link outlives the copy. Another disk, or a file of another user, takes a symbolic link.
    """
    copy = job.find_copy(file)
    digest = sha256_if_equal(copy, file.content) if copy is not None else None
    if copy is None or digest is None:
        return None
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(copy.resolve())
    except OSError:
        target.symlink_to(copy.resolve())
    return digest


def _explain(job: _Job, error: StatusError) -> str | None:
    """Return why the hub refuses the file, so that another attempt is useless, or None."""
    if error.is_elsewhere and "X-Error-Code" not in error.headers:
        return None  # the file host refused an expired link; the next attempt gets a new link
    page = (job.base_url or "").partition("/resolve/")[0]
    return explain_refusal(error.status, error.headers, page=page, token=job.token)
