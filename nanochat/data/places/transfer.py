"""Downloads one file: continues what an earlier attempt received, tries again after faults, and verifies the content.

A file never grows beyond its announced size, or beyond a limit if no size is announced. Some disk space always stays
free. Not here: where files come from, and the record of a complete download.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from nanochat.data.places.attempts import StatusError, TemporaryError, retry
from nanochat.data.places.connection import Answer, Place, open_place
from nanochat.errors import PreflightError

_BLOCK_BYTES = 1 << 20
_SPARE_BYTES = 1 << 28
"""Disk space that downloads leave free."""
_MAX_UNANNOUNCED_BYTES = 16 * 10**9
"""The largest download that is accepted if neither the server nor a list of files announces its size."""


class Progress(Protocol):
    """Receives a download's progress, perhaps from several threads but never at the same time."""

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Receive the bytes downloaded so far, and the bytes of all files."""


@dataclass(frozen=True)
class Content:
    """The expected content of a file: its digest, and its size if that is known before the download.

    A digest of the kind `git-sha1` needs the size.
    """

    digest_kind: Literal["sha256", "git-sha1"]
    digest: str
    size: int | None


@dataclass(frozen=True)
class Download:
    """A file that is downloaded.

    Attributes:
        place: where it is.
        part: the path of the file while it is incomplete. It may hold the first bytes of an earlier attempt.
        content: what it must contain.
        repeats_damaged: whether content that does not match is downloaded again. If not, the server has a different
            file, and the download fails.
        explain: returns why the server refuses for good, or None if another attempt may succeed.
        on_bytes: called with the number of bytes received so far, and the size of the file. If the size is unknown,
            both numbers are the same.
        stopped: ends the download when it is set.
    """

    place: Place
    part: Path
    content: Content
    repeats_damaged: bool
    explain: Callable[[StatusError], str | None]
    on_bytes: Callable[[int, int], None]
    stopped: threading.Event


def transfer(download: Download) -> str:
    """Download a file to its `part`, and return its sha256 (hex).

    Raises:
        PreflightError: the file cannot be downloaded, is not what it must be, or does not fit on the disk. What was
            received is kept, unless it is wrong.
        OSError: the file cannot be written.
    """
    try:
        return retry(lambda: _attempt(download), stopped=download.stopped)
    except TemporaryError as error:
        raise PreflightError(
            f"{download.place.url}: cannot be downloaded ({error}); the same command continues with what was received"
        ) from error


def check_room(what: str, folder: Path, needed_bytes: int, *, advice: str = "") -> None:
    """Check that a folder's disk has room for `needed_bytes`, and some to spare.

    Raises:
        PreflightError: there is not enough room.
    """
    needed, free = needed_bytes + _SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise PreflightError(
            f"{what}: no room to download: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free at {folder}; "
            f"free some space, {advice}or set NANOCHAT_BASE_DIR to another disk"
        )


def sha256_if_equal(path: Path, content: Content) -> str | None:
    """Return the sha256 (hex) of a file if it has the content, else None."""
    if content.size is not None and path.stat().st_size != content.size:
        return None
    hashes = _Hashes(content)
    hashes.add_file(path)
    return hashes.sha256 if hashes.match() else None


class _Hashes:
    """The digests of the bytes received so far."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._compared = self._sha256
        if content.digest_kind == "git-sha1":
            assert content.size is not None, "git hashes the size before the content"
            self._compared = hashlib.sha1(b"blob %d\0" % content.size, usedforsecurity=False)

    def add(self, block: bytes) -> None:
        self.size += len(block)
        self._sha256.update(block)
        if self._compared is not self._sha256:
            self._compared.update(block)

    def add_file(self, path: Path) -> None:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                self.add(block)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def match(self) -> bool:
        """Return whether the bytes are the required content."""
        return self._compared.hexdigest() == self._content.digest


def _attempt(download: Download) -> str:
    """Append the missing bytes to the part file, and return the sha256 of all its bytes."""
    part, content = download.part, download.content
    hashes, encoding = _Hashes(content), None
    if part.exists() and content.size is not None and part.stat().st_size > content.size:
        part.unlink()
    if part.exists():
        hashes.add_file(part)
    is_resumed = hashes.size > 0
    if not hashes.match() and hashes.size != content.size:
        hashes, encoding = _receive(download, hashes)
    if hashes.match():
        part.touch()  # an empty file needs no download
        return hashes.sha256
    part.unlink()
    how = f", with the encoding {encoding!r} that was not requested" if encoding else ""
    if is_resumed or download.repeats_damaged:
        raise TemporaryError(f"its content is not what was announced{how}")
    raise PreflightError(
        f"{download.place.url}: its content has the sha256 {hashes.sha256}{how}, but the recipe says {content.digest}; "
        "if you trust this content, change `sha256` in the recipe"
    )


def _receive(download: Download, hashes: _Hashes) -> tuple[_Hashes, str | None]:
    """Append the missing bytes to the part file. Return the digests of all its bytes, and how they are encoded."""
    try:
        with open_place(download.place, first_byte=hashes.size) as answer:
            if not answer.is_partial:
                hashes = _Hashes(download.content)  # a server without range requests sends the file from its start
            elif answer.range is None or answer.range[0] != hashes.size:
                raise _start_again(download, "the server does not send the rest of the file")
            _append(download, answer, hashes)
            return hashes, answer.encoding
    except StatusError as error:
        if error.status == 416:
            raise _start_again(download, "the server does not send the rest of the file") from error
        if (reason := download.explain(error)) is not None:
            raise PreflightError(f"{download.place.url}: cannot be downloaded ({reason})") from error
        raise TemporaryError(str(error)) from error


def _append(download: Download, answer: Answer, hashes: _Hashes) -> None:
    """Append the content of an answer to the part file, but not more than the announced size."""
    part, url, total = download.part, download.place.url, _announced_size(download, answer, hashes.size)
    if total is not None and total < hashes.size:
        raise _start_again(download, "the file has become smaller")
    limit = _MAX_UNANNOUNCED_BYTES if total is None else total
    check_room(url, part.parent, 0 if total is None else total - hashes.size)
    with part.open("ab" if hashes.size else "wb") as out:
        for block in answer.blocks():
            if hashes.size + len(block) > limit:
                part.unlink()
                reason = (
                    "the most that a file without an announced size may have" if total is None else "the announced size"
                )
                raise PreflightError(f"{url}: the server sends more than {limit:,} bytes, {reason}; refused")
            if total is None:
                check_room(url, part.parent, len(block))
            out.write(block)
            hashes.add(block)
            download.on_bytes(hashes.size, hashes.size if total is None else total)
            if download.stopped.is_set():
                raise TemporaryError("stopped")
    if total is not None and hashes.size < total:
        raise TemporaryError(f"cut off at {hashes.size:,} of {total:,} bytes")


def _announced_size(download: Download, answer: Answer, have: int) -> int | None:
    """Return the size of the whole file, or None if neither the server nor a list of files announces it."""
    announced = answer.size
    if answer.is_partial:
        end = None if answer.size is None else have + answer.size
        announced = answer.range[1] if answer.range is not None and answer.range[1] is not None else end
    known = download.content.size
    if known is not None and announced is not None and announced != known:
        how = f" with the encoding {answer.encoding!r}" if answer.encoding else ""
        problem = f"the server sends {announced:,} bytes{how}, but the file should have {known:,}; refused"
        raise PreflightError(f"{download.place.url}: {problem}")
    return announced if known is None else known


def _start_again(download: Download, problem: str) -> TemporaryError:
    """Delete the received part, so that the next attempt begins at the first byte, and return the error to raise."""
    download.part.unlink(missing_ok=True)
    return TemporaryError(problem)
