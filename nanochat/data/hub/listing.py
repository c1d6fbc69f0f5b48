"""Asking the hub which commit a revision names, and which files a data set has there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote

from nanochat.errors import PreflightError

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set. The hub gives the sha256 of large files, git's sha1 of small ones, or no digest ('')."""

    path: str
    size: int
    digest_kind: Literal["sha256", "git-sha1", "none"]
    digest: str


@dataclass(frozen=True)
class Listing:
    """All files of a data set at a commit."""

    commit: str
    files: tuple[RemoteFile, ...]


def request_headers(token: str | None) -> dict[str, str]:
    """Return the headers of every request, which ask for files without compression."""
    headers = {"User-Agent": "nanochat", "Accept-Encoding": "identity"}
    return {**headers, "Authorization": f"Bearer {token}"} if token else headers


def list_files(endpoint: str, repository: str, revision: str, *, token: str | None) -> Listing:
    """Return the commit that `revision` names now, and the files in it.

    Raises:
        PreflightError: the hub does not answer, or has no such data set or revision.
    """
    import requests  # planning imports this module, but only downloads need it

    where = f"hf://datasets/{repository}"
    url = f"{endpoint}/api/datasets/{repository}/revision/{quote(revision, safe='')}?blobs=true"
    try:
        response = requests.get(url, headers=request_headers(token), timeout=_TIMEOUT_SECONDS)
        kind = response.headers.get("X-Error-Code", "")
        if kind == "RevisionNotFound":
            raise PreflightError(f"{where} has no revision `{revision}`; give a branch, tag or commit of it")
        if kind in ("RepoNotFound", "GatedRepo") or response.status_code in (401, 403, 404):
            raise PreflightError(
                f"{where}: no such data set on {endpoint}, or it is private or gated and needs a token in the "
                "environment variable HF_TOKEN"
            )
        response.raise_for_status()
        return _parse(response.json())
    except (requests.RequestException, KeyError, TypeError) as error:
        problem = f"no usable answer from the hub at {endpoint} ({type(error).__name__})"
        raise PreflightError(f"{where}: {problem}; is there a network?") from error


def _parse(answer: dict[str, object]) -> Listing:
    commit, siblings = answer["sha"], answer["siblings"]
    if not isinstance(commit, str) or not isinstance(siblings, list):
        raise TypeError("not a listing")
    return Listing(commit, tuple(_parse_file(entry) for entry in siblings))


def _parse_file(entry: dict[str, object]) -> RemoteFile:
    path, lfs, blob = str(entry["rfilename"]), entry.get("lfs"), entry.get("blobId")
    if isinstance(lfs, dict):
        return RemoteFile(path, int(lfs["size"]), "sha256", str(lfs["sha256"]))
    size = entry["size"]
    if not isinstance(size, int):
        raise TypeError("a file without a size")
    return RemoteFile(path, size, "git-sha1", blob) if isinstance(blob, str) else RemoteFile(path, size, "none", "")
