"""The downloads of hub data sets under the base folder: where they are, which there are, and how they are deleted.

<base>/hub/datasets/OWNER/NAME/COMMIT/      the files of a commit
<base>/hub/datasets/OWNER/NAME/parts/COMMIT/   its files that are incomplete
<base>/hub/datasets/OWNER/NAME/manifests/   a record for each complete download: a commit and a choice of files
<base>/hub/datasets/OWNER/NAME/revisions/   the commit that each branch or tag last named
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from nanochat.data.hub.hub_source import HubSource, is_commit
from nanochat.data.places.manifest import read_manifest
from nanochat.storage.files import delete_leftovers, folder_bytes

MANIFESTS, REVISIONS, PARTS = "manifests", "revisions", "parts"


def repository_folder(source: HubSource, base: Path) -> Path:
    """Return the folder of a data set."""
    return _root(base) / source.repository


def parts_folder(commit_folder: Path) -> Path:
    """Return the folder of the incomplete files of a commit."""
    return commit_folder.parent / PARTS / commit_folder.name


def stored_commits(base: Path) -> list[Path]:
    """Return the folders of all commits of which there are files, perhaps only incomplete ones, sorted by path."""
    found = [*_root(base).glob("*/*/*")]
    found += [path.parent.with_name(path.name) for path in _root(base).glob(f"*/*/{PARTS}/*") if path.is_dir()]
    return sorted({path for path in found if is_commit(path.name) and (path.is_dir() or parts_folder(path).is_dir())})


def commit_bytes(folder: Path) -> int:
    """Return the size of the files of a commit."""
    return folder_bytes(folder) + folder_bytes(parts_folder(folder))


def delete_commit(folder: Path) -> None:
    """Delete a commit: its records first, so that no half-deleted download looks complete."""
    repository, commit = folder.parent, folder.name
    for record in (repository / MANIFESTS).glob("*.json"):
        manifest = read_manifest(record)
        if manifest is None or manifest.details.get("commit") == commit:
            record.unlink()
    for revision in (repository / REVISIONS).glob("*"):
        if revision.read_text().strip() == commit:
            revision.unlink()
    for path in (folder, parts_folder(folder)):
        shutil.rmtree(path, ignore_errors=True)
    for path in (repository / PARTS, repository / MANIFESTS, repository / REVISIONS):
        with suppress(OSError):  # not empty, or not there
            path.rmdir()
    if [path.name for path in repository.iterdir()] == [".lock"]:
        shutil.rmtree(repository)
        with suppress(OSError):
            repository.parent.rmdir()


def delete_dead_scratch(base: Path) -> None:
    """Delete the scratch files of processes that were killed while they wrote a record."""
    for name in (MANIFESTS, REVISIONS):
        for folder in _root(base).glob(f"*/*/{name}"):
            delete_leftovers(folder)


def _root(base: Path) -> Path:
    return base / "hub" / "datasets"
