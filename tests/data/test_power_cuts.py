"""What declares data complete is written after the data, and the folders above them, have been flushed to disk.

A power cut may take away all that was not flushed. Only the order of the calls is tested here, not a disk.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile

import pytest

from nanochat.data.ingest import convert
from nanochat.data.places import manifest
from nanochat.data.sources.source_downloads import fetch
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.runner.preflight.hub_pins import write_lock

LINES = b"".join(b'{"text": "line %d"}\n' % i for i in range(30))


class FlushedDisk:
    """Knows what has been flushed: the size and time of each file, and the names in each folder."""

    def __init__(self, monkeypatch):
        self._flushed = {}
        self._flush = os.fsync
        monkeypatch.setattr(os, "fsync", self._record)

    def _record(self, descriptor):
        status = os.fstat(descriptor)
        names = [entry.name for entry in os.scandir(descriptor)] if stat.S_ISDIR(status.st_mode) else None
        self._flushed[status.st_ino] = names if names is not None else (status.st_size, status.st_mtime_ns)
        self._flush(descriptor)

    def lost(self, path, root):
        """The files below a path that a power cut would take away or change, because of themselves or a folder."""
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        assert files
        return [file for file in files if not self._is_safe(file, root)]

    def _is_safe(self, file, root):
        status, chain = file.stat(), [file, *file.parents]
        above = chain[1 : chain.index(root) + 1]
        has_names = all(
            child.name in self._flushed.get(folder.stat().st_ino, ())
            for child, folder in zip(chain, above, strict=False)
        )
        return has_names and self._flushed.get(status.st_ino) == (status.st_size, status.st_mtime_ns)


@pytest.fixture
def disk(monkeypatch, tmp_path):
    return FlushedDisk(monkeypatch)


@pytest.fixture
def record_lost(disk, monkeypatch, tmp_path):
    """Return a function: each call of a function that completes something first records what would be lost then."""
    lost = []

    def watch(module, name, data_of):
        real = getattr(module, name)

        def watched(*arguments, **options):
            lost.append(disk.lost(data_of(*arguments), tmp_path))
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, watched)
        return lost

    return watch


def test_record_of_a_hub_download_is_written_after_its_files_are_flushed(fake_hub, base, disk, record_lost, tmp_path):
    fake_hub.files |= {"a/b/train.jsonl": LINES, "train.jsonl": LINES}
    data = base / "hub/datasets/some/texts" / fake_hub.commit
    lost = record_lost(manifest, "write_text", lambda path, _: data)
    fetch(SourceSpec(name="texts", uri="hf://datasets/some/texts"), base=base, offline=False)
    assert lost == [[]]
    assert disk.lost(base / "hub/datasets/some/texts/manifests", tmp_path) == []
    assert disk.lost(base / "hub/datasets/some/texts/revisions", tmp_path) == []


@pytest.mark.parametrize("name", ["train.jsonl", "texts.zip"])
def test_record_of_an_address_is_written_after_its_files_are_flushed(web, base, disk, record_lost, tmp_path, name):
    content = LINES
    if name == "texts.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a/b/train.jsonl", LINES)
        content = (tmp_path / name).read_bytes()
    web.files[f"/{name}"] = content
    spec = SourceSpec(name="texts", uri=f"{web.url}/{name}", sha256=hashlib.sha256(content).hexdigest())
    lost = record_lost(manifest, "write_text", lambda path, _: path.parent / "files")
    fetch(spec, base=base, offline=False)
    (record,) = base.glob("downloads/*/manifest.json")
    assert lost == [[]] and disk.lost(record, tmp_path) == []


def test_copy_of_a_file_is_complete_after_its_parts_are_flushed(files, base, disk, record_lost, tmp_path):
    path = files.text("rows.csv", "text\n" + "".join(f"line {i}\n" for i in range(30)))
    lost = record_lost(convert, "move_into_place", lambda partial, _: partial)
    folder = convert.convert(path, base=base, part_bytes=1)
    assert lost == [[]] and disk.lost(folder, tmp_path) == []


def test_lock_file_is_flushed(disk, tmp_path):
    write_lock(tmp_path / "tiny.lock", {"hf://datasets/a/b@main": "c" * 40}, recipe=tmp_path / "tiny.yaml")
    assert disk.lost(tmp_path / "tiny.lock", tmp_path) == []
