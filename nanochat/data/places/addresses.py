"""Downloads the sources with an address (`https://`, `s3://`, `gs://`) to `<base>/downloads`, and verifies them.

Archives are unpacked. The files appear together, and their manifest is written last: only the manifest shows that a
download is complete. Without the network, only complete downloads are read. Not here: data sets of the Hugging Face
hub.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from nanochat.data.files.selection.file_selection import FileSelection
from nanochat.data.places import buckets
from nanochat.data.places.archives import is_archive, unpack
from nanochat.data.places.attempts import StatusError, TemporaryError
from nanochat.data.places.connection import Place, is_offline, open_place
from nanochat.data.places.file_names import show, why_refused
from nanochat.data.places.manifest import Manifest, StoredFile, check_files, read_manifest, write_manifest
from nanochat.data.places.transfer import Content, Download, Progress, transfer
from nanochat.errors import PreflightError
from nanochat.storage.files import delete_leftovers, exclusive, make_folder, move_into_place, new_folder, sha256_of_file

_MANIFEST, _FILES, _PARTS = "manifest.json", "files", "parts"


@dataclass(frozen=True)
class Address:
    """Where a source is, and the sha256 of its content.

    Raises:
        PreflightError: the address ends with a name that cannot be the name of a file.
    """

    uri: str
    sha256: str | None
    selection: FileSelection
    """A choice of the files in a folder of an object store."""

    def __post_init__(self) -> None:
        if (reason := why_refused(self.name)) is not None:
            raise PreflightError(f"{show(self.uri)}: {reason}; check the address")

    @property
    def name(self) -> str:
        """The name of the file, without its folders and without the query of the address."""
        return PurePosixPath(unquote(urlsplit(self.uri).path)).name

    @property
    def is_archive(self) -> bool:
        """Whether the content is an archive, whose files are the data."""
        return is_archive(self.name)

    @property
    def digest(self) -> str:
        """The sha256 (hex) of the file's name and content, equal to the digest of the same file as a local source.

        If the recipe gives no `sha256`, it is the digest of the address and of the selection of files instead.
        """
        if self.sha256 is None:
            selection = [self.selection.max_files, self.selection.validation_shard]
            return hashlib.sha256(json.dumps([self.uri, selection]).encode()).hexdigest()
        return hashlib.sha256(f"{self.name}\0{self.sha256}".encode()).hexdigest()


def cached(address: Address, *, base: Path, are_loaded: bool = False) -> Path:
    """Return the path of a complete download, after checking its files against the manifest. Uses no network.

    The check compares sizes. It computes a file's digest again only if its size or modification time has changed, or if
    the files are about to be loaded.

    Raises:
        PreflightError: there is no complete download; the message names what is missing or damaged.
    """
    folder = download_folder(address, base=base)
    manifest = read_manifest(folder / _MANIFEST)
    if manifest is None:
        raise PreflightError(
            f"{address.uri} is not downloaded under {folder}; run once with the network, without `--offline` and "
            "HF_HUB_OFFLINE"
        )
    data = folder / _FILES
    check_files(address.uri, manifest.files, data, base=base, are_loaded=are_loaded)
    is_folder = manifest.details.get("is_folder") or len(manifest.files) != 1
    return data if is_folder else data / manifest.files[0].path


def is_cached(address: Address, *, base: Path) -> bool:
    """Return whether the download is complete."""
    try:
        cached(address, base=base)
    except PreflightError:
        return False
    return True


def check(address: Address, *, base: Path, offline: bool) -> None:
    """Check that the content can be downloaded, without downloading it. Offline it must be downloaded.

    Raises:
        PreflightError: the message says what is wrong.
    """
    if offline or is_offline():
        cached(address, base=base)
    elif address.uri.startswith(buckets.SCHEMES):
        buckets.check(address.uri, address.selection)
    else:
        _check_https(address.uri)


def fetch(address: Address, *, base: Path, offline: bool, progress: Progress | None = None) -> Path:
    """Return the file or folder of a complete download, after downloading what is missing.

    Raises:
        PreflightError: the content cannot be downloaded, is not what the recipe says, or does not fit on the disk.
    """
    if offline or is_offline() or is_cached(address, base=base):
        return cached(address, base=base)
    folder = download_folder(address, base=base)
    try:
        with exclusive(folder):
            if not is_cached(address, base=base):
                _fetch(address, folder, progress)
    except OSError as error:
        reason = error.strerror or str(error)
        raise PreflightError(
            f"{address.uri}: cannot be written to {folder} ({reason}); free some space, or set NANOCHAT_BASE_DIR to "
            "another disk"
        ) from error
    return cached(address, base=base)


def download_folder(address: Address, *, base: Path) -> Path:
    """Return the folder of a download, which need not exist."""
    return _root(base) / address.digest


def stored_downloads(base: Path) -> list[Path]:
    """Return the folders of all downloads, the incomplete ones included, sorted by path."""
    return sorted(path for path in _root(base).glob("*") if path.is_dir())


def delete_download(folder: Path) -> None:
    """Delete a download: its record first, so that no half-deleted download looks complete."""
    (folder / _MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)


def delete_dead_scratch(folder: Path) -> None:
    """Delete the leftovers of a killed process in the folder of a download, but not the part that continues it."""
    delete_leftovers(folder)
    if (folder / _MANIFEST).is_file():
        shutil.rmtree(folder / _PARTS, ignore_errors=True)


def _fetch(address: Address, folder: Path, progress: Progress | None) -> None:
    parts, data = folder / _PARTS, folder / _FILES
    delete_leftovers(folder)
    make_folder(parts)
    (folder / _MANIFEST).unlink(missing_ok=True)
    received = _receive(address, parts, progress)
    is_folder = address.is_archive or list(received) != [PurePosixPath(address.name)]
    with new_folder(data) as scratch:
        for name, part in received.items():
            if address.is_archive:
                _unpack(address, part, scratch)
            else:
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                move_into_place(part, scratch / name)
    files = tuple(
        StoredFile(path.relative_to(data).as_posix(), path.stat().st_size, sha256_of_file(path))
        for path in sorted(data.rglob("*"))
        if path.is_file()
    )
    write_manifest(folder / _MANIFEST, Manifest(files, {"uri": address.uri, "is_folder": is_folder}))
    shutil.rmtree(parts)


def _receive(address: Address, parts: Path, progress: Progress | None) -> dict[PurePosixPath, Path]:
    """Download the files of an address to `parts`, and return them by their names."""
    if not address.uri.startswith(buckets.SCHEMES):
        assert address.sha256 is not None, f"{address.uri} needs a sha256"
        part = parts / address.sha256
        content = Content("sha256", address.sha256, size=None)
        on_bytes = progress or (lambda done_bytes, total_bytes: None)
        stopped = threading.Event()  # `progress` raises to stop the download
        transfer(Download(Place(address.uri), part, content, False, _explain, on_bytes, stopped))
        return {PurePosixPath(address.name): part}
    received = buckets.download(address.uri, address.selection, parts, progress=progress)
    if address.sha256 is not None:
        digests = {name: sha256_of_file(path) for name, path in received.items()}
        if list(digests.values()) != [address.sha256]:
            shutil.rmtree(parts)
            have = ", ".join(f"{name} {digest}" for name, digest in digests.items())
            raise PreflightError(f"{address.uri}: the recipe says sha256 {address.sha256}, but there is: {have}")
    return received


def _unpack(address: Address, part: Path, folder: Path) -> None:
    try:
        unpack(part, address.name, folder)
    except PreflightError as error:
        raise PreflightError(f"{address.uri}: {error}") from error


def _check_https(uri: str) -> None:
    """Check that a server offers a file, without reading it."""
    try:
        with open_place(Place(uri)):
            pass
    except TemporaryError as error:
        raise PreflightError(f"{uri}: {error}; is there a network?") from error
    except StatusError as error:
        raise PreflightError(f"{uri}: {_explain(error) or f'{error}; try again later'}") from error


def _explain(error: StatusError) -> str | None:
    """Return why a server refuses a file, or None if another attempt may succeed."""
    return None if error.is_temporary else f"{error}; check the address"


def _root(base: Path) -> Path:
    return base / "downloads"
