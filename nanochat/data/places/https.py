"""Downloads one file by https. It continues where it was cut off, and its content must have a given sha256."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from nanochat.data.hub.download import Progress
from nanochat.errors import PreflightError

if TYPE_CHECKING:
    from requests import Response

_ATTEMPTS = 5
_PAUSE_SECONDS = 0.05
_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 16  # the most that a cut connection costs
_SPARE_BYTES = 1 << 28
_MAX_REDIRECTS = 10
_HEADERS = {"User-Agent": "nanochat", "Accept-Encoding": "identity"}
_TEMPORARY = (408, 425, 429)
"""Statuses below 500 after which another attempt may succeed."""


class _CutOffError(Exception):
    """Another attempt may succeed. Never leaves this module."""


def check(url: str) -> None:
    """Check that a server offers a file, without reading it.

    Raises:
        PreflightError: the server cannot be reached, refuses the file, or redirects to another scheme.
    """
    import requests

    try:
        with _open(url, {}):
            pass
    except (requests.RequestException, _CutOffError) as error:
        raise PreflightError(f"{url}: no usable answer ({_reason(error)}); is there a network?") from error


def download(url: str, sha256: str, part: Path, *, progress: Progress | None) -> None:
    """Download a file to `part`, which may hold the first bytes of an earlier attempt.

    Raises:
        PreflightError: the file cannot be downloaded, has another sha256, or does not fit on the disk. What was
            received is kept, unless its sha256 is wrong.
        OSError: the file cannot be written.
    """
    # Planning imports this module, but only downloads need the libraries.
    import requests
    import urllib3

    problem = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE_SECONDS * (4**attempt - 1))
        is_resumed = part.exists()
        try:
            digest = _transfer(url, sha256, part, progress)
        except (requests.RequestException, urllib3.exceptions.HTTPError, _CutOffError) as error:
            problem = _reason(error)
            continue
        if digest == sha256:
            return
        part.unlink()
        problem = f"its content has the sha256 {digest}, but the recipe says {sha256}"
        if not is_resumed:
            raise PreflightError(f"{url}: {problem}; if you trust this content, change `sha256` in the recipe")
    raise PreflightError(f"{url}: cannot be downloaded ({problem}); the same command continues with what was received")


def _transfer(url: str, sha256: str, part: Path, progress: Progress | None) -> str:
    """Append the missing bytes to the part file, and return the sha256 of all its bytes."""
    digest, have = hashlib.sha256(), 0
    if part.exists():
        with part.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                have += len(chunk)
        if digest.hexdigest() == sha256:
            return sha256
    with _open(url, {"Range": f"bytes={have}-"} if have else {}) as response:
        if response.status_code == 416 or not _continues_at(have, response):
            part.unlink(missing_ok=True)
            raise _CutOffError("the server does not send the rest of the file")
        if response.status_code != 206:  # a server without range requests sends the file from its start
            digest, have = hashlib.sha256(), 0
        total = have + int(response.headers.get("Content-Length", 0))
        _check_space(url, part, total - have)
        with part.open("ab" if have else "wb") as out:
            for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
                out.write(chunk)
                digest.update(chunk)
                have += len(chunk)
                if progress is not None:
                    progress(have, max(total, have))
    return digest.hexdigest()


def _continues_at(have: int, response: Response) -> bool:
    return response.status_code != 206 or response.headers.get("Content-Range", "").startswith(f"bytes {have}-")


@contextmanager
def _open(url: str, headers: Mapping[str, str]) -> Iterator[Response]:
    """Yield the answer of the server, after redirects to other https addresses."""
    import requests

    place = url
    for _ in range(_MAX_REDIRECTS):
        with requests.get(
            place, headers={**_HEADERS, **headers}, stream=True, allow_redirects=False, timeout=_TIMEOUT_SECONDS
        ) as response:
            if not response.is_redirect:
                _check_status(url, response)
                yield response
                return
            place = urljoin(place, response.headers["Location"])
        target = urlsplit(place)
        if target.scheme != "https":
            # The rest of the address may be a secret.
            raise PreflightError(f"{url}: redirects to {target.scheme}://{target.netloc}, which is not https; refused")
    raise PreflightError(f"{url}: more than {_MAX_REDIRECTS} redirects; check the address")


def _check_status(url: str, response: Response) -> None:
    status = response.status_code
    if status >= 500 or status in _TEMPORARY:
        raise _CutOffError(f"the server answers {status}")
    if status not in (200, 206, 416):
        raise PreflightError(f"{url}: the server answers {status} {response.reason}; check the address")


def _check_space(url: str, part: Path, missing_bytes: int) -> None:
    free = shutil.disk_usage(part.parent).free
    needed = missing_bytes + _SPARE_BYTES
    if needed > free:
        raise PreflightError(
            f"{url}: no room to download: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free at "
            f"{part.parent}; free some space, or set NANOCHAT_BASE_DIR to another disk"
        )


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _CutOffError) else type(error).__name__
