"""Download of a list of files: parallel, resumed where cut off, verified, each visible only when whole."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from nanochat.data.hub.listing import RemoteFile, request_headers
from nanochat.errors import PreflightError
from nanochat.storage.files import move_into_place, sha256_of_file

_WORKERS = 6
_ATTEMPTS = 5
_PAUSE_SECONDS = 0.05
_CHUNK_BYTES = 1 << 16  # what a cut connection costs at most
_TIMEOUT_SECONDS = 30.0


class Progress(Protocol):
    """Is told how far a download has come; called from several threads, never at the same time."""

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Take note."""


class _DamagedError(Exception):
    """What arrived is not what the hub announced; never leaves this module."""


def download(
    files: Sequence[RemoteFile], folder: Path, *, base_url: str, token: str | None, progress: Progress | None
) -> dict[str, str]:
    """Return the sha256 of each file by its path, once all of them lie in `folder`; whole ones are kept as they are.

    Raises:
        PreflightError: a file cannot be had, or arrives damaged again and again; what has arrived stays.
    """
    job = _Job(base_url, request_headers(token), files, progress)
    with ThreadPoolExecutor(_WORKERS) as pool:
        futures = {file.path: pool.submit(_fetch, job, file, folder / file.path) for file in files}
        try:
            return {path: future.result() for path, future in futures.items()}
        except BaseException:
            job.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _Job:
    """What the workers share: where to ask, how many bytes have arrived, and whether to stop."""

    def __init__(
        self, base_url: str, headers: dict[str, str], files: Sequence[RemoteFile], progress: Progress | None
    ) -> None:
        self.base_url = base_url
        self.headers = headers
        self.stopped = threading.Event()
        self._total = sum(file.size for file in files)
        self._arrived: dict[str, int] = {}
        self._progress = progress
        self._lock = threading.Lock()

    def note(self, file: RemoteFile, size: int) -> None:
        """Record that the first `size` bytes of a file are here."""
        with self._lock:
            self._arrived[file.path] = size
            if self._progress is not None:
                self._progress(sum(self._arrived.values()), self._total)


def _fetch(job: _Job, file: RemoteFile, target: Path) -> str:
    """Return the sha256 of the file at `target`, downloaded where it is not there yet."""
    import requests

    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    if target.is_file():
        with contextlib.suppress(_DamagedError):
            digest = _verify(file, target)
            job.note(file, file.size)
            return digest
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
            if _is_final(error):
                break
        except OSError as error:
            raise PreflightError(f"{part}: cannot be written ({error.strerror}); is the disk full?") from error
        else:
            move_into_place(part, target)
            return digest
    raise PreflightError(f"{url}: cannot be downloaded ({problem}); the same command goes on from what has arrived")


def _is_final(error: Exception) -> bool:
    """Return whether asking again is useless."""
    response = getattr(error, "response", None)
    return response is not None and response.status_code in (401, 403, 404)


def _transfer(job: _Job, url: str, file: RemoteFile, part: Path) -> None:
    """Add to the part file what it lacks."""
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
                job.note(file, have)
                if job.stopped.is_set():
                    raise _DamagedError("stopped")


def _verify(file: RemoteFile, part: Path) -> str:
    """Return the sha256 of a file that is what the hub announced; a wrong one is deleted, one cut off is kept."""
    size = part.stat().st_size
    if size < file.size:
        raise _DamagedError(f"cut off at {size:,} of {file.size:,} bytes")
    digest = sha256_of_file(part)
    if size == file.size and file.digest in ("", digest, _git_sha1(part) if file.digest_kind == "git-sha1" else ""):
        return digest
    part.unlink()
    raise _DamagedError("its content is not what the hub announced")


def _git_sha1(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
