"""Downloads of sources: fetching them from the hub or an address, and what of them is on this machine already.

Local and built-in sources need no download. Not here: the files of a source, downloaded or not (`source_contents`).
"""

from __future__ import annotations

from pathlib import Path

from nanochat.data.files.selection.file_selection import FileSelection
from nanochat.data.hub import hub
from nanochat.data.hub.hub_source import HubSource, is_on_hub
from nanochat.data.places import addresses
from nanochat.data.places.addresses import Address
from nanochat.data.places.connection import is_offline
from nanochat.data.places.manifest import DamagedDownloadError
from nanochat.data.places.transfer import Progress
from nanochat.data.sources.source_spec import SourceSpec, as_preflight_error
from nanochat.errors import PreflightError


def fetch(spec: SourceSpec, *, base: Path, offline: bool, progress: Progress | None = None) -> None:
    """Download a hub data set or what has an address, if it is not downloaded yet. Other sources need no download.

    Raises:
        PreflightError: the download fails, or is needed but `offline` forbids it.
    """
    with as_preflight_error(spec):
        if spec.uri is not None and not is_on_hub(spec.uri):
            addresses.fetch(address_of(spec, spec.uri), base=base, offline=offline, progress=progress)
        elif spec.uri is not None:
            hub.fetch(*hub_files(spec, spec.uri), base=base, offline=offline, progress=progress)


def find_damage(spec: SourceSpec, *, base: Path, offline: bool) -> str | None:
    """Return which file of a complete download is missing or has changed, if `fetch` would download it again, or None.

    The message names the file.
    """
    if spec.uri is None or offline or is_offline():
        return None
    try:
        if is_on_hub(spec.uri):
            hub.cached(*hub_files(spec, spec.uri), base=base)
        else:
            addresses.cached(address_of(spec, spec.uri), base=base)
    except DamagedDownloadError as error:
        return error.problem
    except PreflightError:  # not downloaded
        return None
    return None


def download_folder(spec: SourceSpec, *, base: Path) -> Path | None:
    """Return the folder of a source's download, which need not exist, or None if it has none or it is not known."""
    if spec.uri is None:
        return None
    if is_on_hub(spec.uri):
        return hub.download_folder(hub_files(spec, spec.uri)[0], base=base)
    return addresses.download_folder(address_of(spec, spec.uri), base=base)


def resolve_revision(spec: SourceSpec, *, base: Path, offline: bool) -> str | None:
    """Return the commit of a hub data set: of its downloaded copy, else the one a download would get. None for others.

    Raises:
        PreflightError: the hub cannot be reached, or `offline` and the data set is not downloaded.
    """
    if spec.uri is None or not is_on_hub(spec.uri):
        return None
    source, selection = hub_files(spec, spec.uri)
    if offline or hub.is_cached(source, selection, base=base):
        return hub.cached(source, selection, base=base).commit
    return hub.check(source).commit


def is_available_offline(spec: SourceSpec, *, base: Path) -> bool:
    """Return whether the source can be read without the network; a remote one can once it is downloaded."""
    if spec.uri is not None and not is_on_hub(spec.uri):
        return addresses.is_cached(address_of(spec, spec.uri), base=base)
    return spec.uri is None or hub.is_cached(*hub_files(spec, spec.uri), base=base)


def check_download(spec: SourceSpec, *, base: Path) -> None:
    """Compare the content of what was downloaded for a source with its record, before it is loaded.

    Raises:
        PreflightError: a file is damaged or missing; the message names it.
    """
    if spec.uri is not None and is_on_hub(spec.uri):
        hub.cached(*hub_files(spec, spec.uri), base=base, are_loaded=True)
    elif spec.uri is not None:
        addresses.cached(address_of(spec, spec.uri), base=base, are_loaded=True)


def hub_files(spec: SourceSpec, uri: str) -> tuple[HubSource, FileSelection]:
    """Return the data set that a `uri` of the hub names, and which of its files are read."""
    return HubSource.parse(uri, spec.revision), selection_of(spec)


def address_of(spec: SourceSpec, uri: str) -> Address:
    """Return the address that any other `uri` is, and which of the files there are read."""
    return Address(uri, spec.sha256, selection_of(spec))


def selection_of(spec: SourceSpec) -> FileSelection:
    """Return the limits of a recipe on the files of a source."""
    return FileSelection(max_files=spec.max_files, validation_shard=spec.validation_shard)
