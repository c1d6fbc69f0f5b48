"""Asking the hub which commit a revision names, and which files a data set has there, page by page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

from nanochat.data.hub.access import endpoint, explain_refusal, read_token
from nanochat.errors import PreflightError

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set. The hub gives the sha256 of large files and git's sha1 of small ones."""

    path: str
    size: int
    digest_kind: Literal["sha256", "git-sha1"]
    digest: str


@dataclass(frozen=True)
class Listing:
    """The files of a data set at a commit: all of them, or those that are known without the network."""

    commit: str
    files: tuple[RemoteFile, ...]
    is_complete: bool = True


class RevisionMissingError(PreflightError):
    """The data set has no such branch, tag or commit, or offline, none that this machine knows."""


def request_headers(token: str | None) -> dict[str, str]:
    """Return the headers of every request to the hub: no compression, and the login token if there is one."""
    headers = {"User-Agent": "nanochat", "Accept-Encoding": "identity"}
    return {**headers, "Authorization": f"Bearer {token}"} if token else headers


def list_files(repository: str, revision: str) -> Listing:
    """Return the commit that `revision` names now, and the files in it.

    Raises:
        RevisionMissingError: the data set has no such revision.
        PreflightError: the hub does not answer, has no such data set, or does not let this machine read it.
    """
    # Planning imports this module, but only downloads need the libraries.
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionNotFoundError

    where, token = f"hf://datasets/{repository}", read_token()
    try:
        return _list_files(repository, revision, token)
    except RevisionNotFoundError as error:
        message = f"{where} has no revision `{revision}`; give a branch, tag or commit of it"
        raise RevisionMissingError(message) from error
    except HFValidationError as error:
        raise PreflightError(f"{where}: {error}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, HfHubHTTPError):
            answer, page = error.response, f"{endpoint()}/datasets/{repository}"
            reason = explain_refusal(answer.status_code, answer.headers, page=page, token=token)
            if reason is not None:
                raise PreflightError(f"{where}: {reason}") from error
        problem = f"no usable answer from the hub at {endpoint()} ({type(error).__name__})"
        raise PreflightError(f"{where}: {problem}; is there a network?") from error


def _list_files(repository: str, revision: str, token: str | None) -> Listing:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import paginate  # type: ignore[attr-defined]  # loaded lazily there

    api = HfApi(endpoint(), token=token or False)
    info = api.dataset_info(repository, revision=revision, timeout=_TIMEOUT_SECONDS, expand=["sha", "gated"])
    if not isinstance(info.sha, str):
        raise TypeError("an answer without a commit")
    # `HfApi.list_repo_tree` asks the same, but it waits for ever if the hub falls silent.
    url = f"{endpoint()}/api/datasets/{repository}/tree/{info.sha}"
    entries = paginate(url, {"recursive": True}, request_headers(token), timeout=_TIMEOUT_SECONDS)
    listed = [RepoFile(**entry) for entry in entries if entry["type"] == "file"]  # type: ignore[no-untyped-call]
    files = tuple(map(remote_file, listed))
    if info.gated and files:
        _check_access(api, repository, info.sha, files[0])
    return Listing(info.sha, files)


def _check_access(api: HfApi, repository: str, commit: str, file: RemoteFile) -> None:
    """Ask for a file without its content. A gated data set shows its list of files to everybody."""
    url = f"{endpoint()}/datasets/{repository}/resolve/{commit}/{quote(file.path)}"
    api.get_hf_file_metadata(url=url, timeout=_TIMEOUT_SECONDS)


def remote_file(file: RepoFile) -> RemoteFile:
    """Return what we need to know about a file that `huggingface_hub` lists.

    Raises:
        ValueError: its path would leave the folder of the download.
    """
    if PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts:
        raise ValueError(f"a file named {file.path}")
    if file.lfs is not None:
        return RemoteFile(file.path, file.lfs.size, "sha256", file.lfs.sha256)
    return RemoteFile(file.path, file.size, "git-sha1", file.blob_id)
