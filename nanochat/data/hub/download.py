"""Parallel download of files. Each is resumed if it was cut off, verified, and visible only when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from nanochat.data.hub.access import explain_refusal
from nanochat.data.hub.listing import RemoteFile, request_headers
from nanochat.errors import PreflightError
from nanochat.storage.files import move_into_place, sha256_of_file

_WORKERS = 6
_ATTEMPTS = 5
_PAUSE_SECONDS = 0.05
_CHUNK_BYTES = 1 << 16  # the most that a cut connection costs
_TIMEOUT_SECONDS = 30.0


class Progress(Protocol):
    """Receives a download's progress, from several threads but never at the same time."""

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Receive the bytes downloaded so far, and the bytes of all files."""


class _DamagedError(Exception):
    """The content received is not what the hub announced. Never leaves this module."""


def _find_nothing(file: RemoteFile) -> Path | None:
    return None


def download(
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    base_url: str | None,
    token: str | None,
    progress: Progress | None,
    find_copy: Callable[[RemoteFile], Path | None] = _find_nothing,
) -> dict[str, str]:
    """Download the files that are not in `folder` yet, and return the sha256 of each file by its path.

    Args:
        files: the files, with the digests that they must have.
        folder: where they go.
        base_url: the address that the files' paths follow; None forbids connections.
        token: sent along, if it is not None.
        progress: receives the progress.
        find_copy: returns a file of this machine that should have the same content. It is verified and linked to.

    Raises:
        PreflightError: a file cannot be downloaded or is damaged at every attempt; what was received is kept.
    """
    job = _Job(base_url, token, files, progress, find_copy)
    with ThreadPoolExecutor(_WORKERS) as pool:
        futures = {file.path: pool.submit(_fetch, job, file, folder / file.path) for file in files}
        try:
            return {path: future.result() for path, future in futures.items()}
        except BaseException:
            job.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Job:
    """What the workers share: address, headers, bytes received so far, and whether to stop."""

    def __init__(
        self,
        base_url: str | None,
        token: str | None,
        files: Sequence[RemoteFile],
        progress: Progress | None,
        find_copy: Callable[[RemoteFile], Path | None],
    ) -> None:
        self.base_url = base_url
        self.find_copy = find_copy
        self.token = token
        self.headers = request_headers(token)
        self.stopped = threading.Event()
        self._total = sum(file.size for file in files)
        self._received: dict[str, int] = {}
        self._progress = progress
        self._lock = threading.Lock()

    def report(self, file: RemoteFile, size: int) -> None:
        """Report that the first `size` bytes of a file have been received."""
        with self._lock:
            self._received[file.path] = size
            if self._progress is not None:
                self._progress(sum(self._received.values()), self._total)


def _fetch(job: _Job, file: RemoteFile, target: Path) -> str:
    """Return the sha256 of the file at `target`, after downloading it if it is missing or damaged."""
    import requests

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    if target.is_file():
        with contextlib.suppress(_DamagedError):
            digest = _verify(file, target)
            job.report(file, file.size)
            return digest
    linked = _link_copy(job, file, target)
    if linked is not None:
        job.report(file, file.size)
        return linked
    if job.base_url is None:
        raise PreflightError(f"{file.path}: no undamaged copy on this machine; run once with the network")
    url = f"{job.base_url}/{quote(file.path)}"
    problem = "stopped"
    for attempt in range(_ATTEMPTS):
        if job.stopped.wait(_PAUSE_SECONDS * (4**attempt - 1)):
            break
        try:
            _transfer(job, url, file, part)
            digest = _verify(file, part)
        except (requests.RequestException, _DamagedError) as error:
            problem = str(error) or type(error).__name__
            refusal = _refusal(job, error)
            if refusal is not None:
                problem = refusal
                break
        except OSError as error:
            raise PreflightError(f"{part}: cannot be written ({error.strerror}); is the disk full?") from error
        else:
            move_into_place(part, target)
            return digest
    raise PreflightError(f"{url}: cannot be downloaded ({problem}); the same command continues with what was received")


def _link_copy(job: _Job, file: RemoteFile, target: Path) -> str | None:
    """Make `target` a link to a verified copy on this machine, and return its sha256; None if there is none.

    A hard link outlives the copy. Another disk, or a file of another user, takes a symbolic link.
    """
    copy = job.find_copy(file)
    digest = _matching_sha256(file, copy) if copy is not None else None
    if copy is None or digest is None:
        return None
    try:
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(copy.resolve())
        except OSError:
            target.symlink_to(copy.resolve())
    except OSError as error:
        raise PreflightError(f"{target}: cannot be written ({error.strerror}); is the disk full?") from error
    return digest


def _refusal(job: _Job, error: Exception) -> str | None:
    """Return why the hub refuses the file, so that another attempt is useless, or None."""
    response = getattr(error, "response", None)
    if response is None or job.base_url is None:
        return None
    if response.history and "X-Error-Code" not in response.headers:
        return None  # the file host refused an expired link; the next attempt gets a new link
    page = job.base_url.partition("/resolve/")[0]
    return explain_refusal(response.status_code, response.headers, page=page, token=job.token)


def _transfer(job: _Job, url: str, file: RemoteFile, part: Path) -> None:
    """Append the missing bytes to the part file."""
    import requests

    have = part.stat().st_size if part.exists() else 0
    if have >= file.size > 0:
        return
    headers = {**job.headers, "Range": f"bytes={have}-"} if have else job.headers
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        response.raise_for_status()
        have = have if response.status_code == requests.codes.partial_content else 0
        with part.open("ab" if have else "wb") as out:
            for chunk in response.iter_content(_CHUNK_BYTES):
                out.write(chunk)
                have += len(chunk)
                job.report(file, have)
                if job.stopped.is_set():
                    raise _DamagedError("stopped")


def _verify(file: RemoteFile, part: Path) -> str:
    """Return the sha256 of a file with the announced content; delete a wrong file, but keep an incomplete one.

    Raises:
        _DamagedError: the content is wrong or incomplete.
    """
    size = part.stat().st_size
    if size < file.size:
        raise _DamagedError(f"cut off at {size:,} of {file.size:,} bytes")
    digest = _matching_sha256(file, part)
    if digest is not None:
        return digest
    part.unlink()
    raise _DamagedError("its content is not what the hub announced")


def _matching_sha256(file: RemoteFile, path: Path) -> str | None:
    """Return the sha256 of a file if its content is what the hub announced, else None."""
    if path.stat().st_size != file.size:
        return None
    digest = sha256_of_file(path)
    return digest if file.digest == (digest if file.digest_kind == "sha256" else _git_sha1(path)) else None


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
