"""Asks the hub which commit a revision names, and which files a data set has there, page by page.

A hub, or a mirror or proxy in its place, may send anything. Everything that it says about a data set becomes a
`Listing` or a `RemoteFile`, and these refuse what could do harm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import quote

from nanochat.data.hub.access import endpoint, explain_refusal, read_token
from nanochat.data.hub.hub_source import is_commit
from nanochat.data.places.attempts import StatusError, TemporaryError, retry
from nanochat.data.places.connection import Place, is_same_server, open_place, read_json
from nanochat.data.places.file_names import find_conflict, show, why_refused
from nanochat.data.places.transfer import Content
from nanochat.errors import PreflightError

_MAX_PAGES = 10_000
_MAX_FILES = 1_000_000
_MAX_SIZE = 1 << 50  # a petabyte
_DIGESTS = {"sha256": re.compile("[0-9a-f]{64}"), "git-sha1": re.compile("[0-9a-f]{40}")}


class UnusableListingError(PreflightError):
    """A statement of the hub, or of a cache of its answers, about a data set is not valid or not safe."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set. The hub gives the sha256 of large files and git's sha1 of small ones.

    Raises:
        UnusableListingError: the name, size or digest is not valid.
    """

    path: str
    size: int
    digest_kind: Literal["sha256", "git-sha1"]
    digest: str

    def __post_init__(self) -> None:
        if not isinstance(self.path, str):
            raise UnusableListingError(f"it lists a file whose name is {show(repr(self.path))}")
        where = f"it lists the file {show(self.path)}"
        if (reason := why_refused(self.path)) is not None:
            raise UnusableListingError(f"{where}: {reason}")
        if not PurePosixPath(self.path).parts or not _is_unicode(self.path):
            raise UnusableListingError(f"{where}: it cannot be the name of a file")
        if type(self.size) is not int or not 0 <= self.size <= _MAX_SIZE:
            raise UnusableListingError(f"{where} with the size {show(repr(self.size))}")
        if not isinstance(self.digest, str) or _DIGESTS[self.digest_kind].fullmatch(self.digest) is None:
            raise UnusableListingError(f"{where} with the {self.digest_kind} {show(repr(self.digest))}")

    @property
    def content(self) -> Content:
        """The expected content of the file."""
        return Content(self.digest_kind, self.digest, self.size)


@dataclass(frozen=True)
class Listing:
    """The files of a data set at a commit: all of them, or those that are known without the network.

    Raises:
        UnusableListingError: the commit is not a git hash, or the files cannot be in one folder.
    """

    commit: str
    files: tuple[RemoteFile, ...]
    is_complete: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.commit, str) or not is_commit(self.commit):
            raise UnusableListingError(f"its commit is {show(repr(self.commit))}, not 40 hex digits")
        if (name := find_conflict(file.path for file in self.files)) is not None:
            raise UnusableListingError(f"it lists {show(name)} twice, or as a file and as a folder")


class RevisionMissingError(PreflightError):
    """The data set has no such branch, tag or commit. Offline: this machine knows none of that name."""


def list_files(repository: str, revision: str) -> Listing:
    """Return the commit that `revision` names now, and the files in it.

    Raises:
        RevisionMissingError: the data set has no such revision.
        PreflightError: the hub does not answer, has no such data set, does not let this machine read it, or says
            something about it that is refused.
    """
    where, token = f"hf://datasets/{repository}", read_token()
    try:
        return _list_files(repository, revision, token)
    except UnusableListingError as error:
        raise PreflightError(f"{where}: the answer of the hub at {endpoint()} is refused: {error}") from error
    except StatusError as error:
        if error.headers.get("X-Error-Code") == "RevisionNotFound":
            message = f"{where} has no revision {show(revision)}; give a branch, tag or commit of it"
            raise RevisionMissingError(message) from error
        page = f"{endpoint()}/datasets/{repository}"
        reason = explain_refusal(error.status, error.headers, page=page, token=token) or f"{error}; try again later"
        raise PreflightError(f"{where}: {reason}") from error
    except (TemporaryError, ValueError) as error:
        problem = f"no usable answer from the hub at {endpoint()} ({error})"
        raise PreflightError(f"{where}: {problem}; is there a network?") from error


def _list_files(repository: str, revision: str, token: str | None) -> Listing:
    api = f"{endpoint()}/api/datasets/{repository}"
    info, _ = read_json(Place(f"{api}/revision/{quote(revision, safe='')}?expand=sha&expand=gated", token))
    if not isinstance(info, dict):
        raise ValueError("it does not describe the data set")
    commit = Listing(info.get("sha"), ()).commit  # type: ignore[arg-type]  # checked there
    entries = _entries(f"{api}/tree/{commit}?recursive=true", token)
    listing = Listing(commit, tuple(_remote_file(entry) for entry in entries if entry.get("type") != "directory"))
    if info.get("gated") and listing.files:
        _check_access(repository, listing, token)
    return listing


def _entries(url: str, token: str | None) -> Iterator[dict[str, object]]:
    """Yield the entries of all pages. A page of another server does not receive the token."""
    count, page = 0, Place(url, token)
    for _ in range(_MAX_PAGES):
        entries, next_url = retry(partial(read_json, page))
        if not isinstance(entries, list):
            raise ValueError("a page of its list of files is not a list")
        for entry in entries:
            if not isinstance(entry, dict):
                raise UnusableListingError(f"it lists {show(repr(entry))}")
            yield entry
        count += len(entries)
        if not next_url:
            return
        if count > _MAX_FILES:
            break
        page = Place(next_url, token if is_same_server(next_url, url) else None)
    raise UnusableListingError(f"its list of files does not end after {count:,} files")


def _check_access(repository: str, listing: Listing, token: str | None) -> None:
    """Ask for a file without its content. A gated data set shows its list of files to everybody."""
    url = f"{endpoint()}/datasets/{repository}/resolve/{listing.commit}/{quote(listing.files[0].path)}"
    with open_place(Place(url, token), method="HEAD", leaves=False):
        pass


def _remote_file(entry: dict[str, object]) -> RemoteFile:
    """Return a file of the list. Git's links and submodules are refused."""
    path, lfs = entry.get("path"), entry.get("lfs")
    if entry.get("type") != "file":
        raise UnusableListingError(f"it lists {show(str(path))} as {show(str(entry.get('type')))}, not as a file")
    if isinstance(lfs, dict):
        return RemoteFile(path, lfs.get("size"), "sha256", lfs.get("oid"))  # type: ignore[arg-type]  # checked there
    return RemoteFile(path, entry.get("size"), "git-sha1", entry.get("oid"))  # type: ignore[arg-type]


def _is_unicode(name: str) -> bool:
    """Return whether a name has no unpaired surrogates, which JSON can contain."""
    return not any("\ud800" <= char <= "\udfff" for char in name)
