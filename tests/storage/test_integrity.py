"""Damaged, lost and exchanged files are found, whatever their size and time, and JSON files check themselves."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from nanochat.storage import integrity
from nanochat.storage.checked_json import read_checked, write_checked
from nanochat.storage.integrity import FileDigest, describe_file, find_change

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of two pieces and a rest."""
    monkeypatch.setattr(integrity, "PIECE_BYTES", 1000)
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    return path


def flip(path, at):
    """Change one byte, and keep size and time as they are."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_describe_file_has_the_sha256_of_the_whole_and_of_each_piece(file):
    described = describe_file(file)
    assert described.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert described.pieces == tuple(hashlib.sha256(CONTENT[i : i + 1000]).hexdigest() for i in (0, 1000, 2000))
    assert (described.size_bytes, described.modified_ns) == (2048, file.stat().st_mtime_ns)


@pytest.mark.parametrize("at", [0, 999, 1000, 2047])
def test_find_change_finds_a_flipped_byte_in_any_piece(file, at):
    described = describe_file(file)
    assert find_change(file, described) is None
    flip(file, at)
    assert find_change(file, described) == "has changed since it was written"
    assert find_change(file, described, trust_time=True) is None


def test_find_change_reads_the_content_if_the_time_differs(file):
    """A copy with the right content gets the recorded time, so that it is read only once."""
    described = describe_file(file)
    os.utime(file, ns=(0, 0))
    assert find_change(file, described, trust_time=True) is None
    assert file.stat().st_mtime_ns == described.modified_ns
    flip(file, 5)
    os.utime(file, ns=(0, 0))
    assert find_change(file, described, trust_time=True) == "has changed since it was written"


def test_find_change_names_a_lost_a_cut_and_a_replaced_file(file):
    described = describe_file(file)
    os.truncate(file, 1024)
    assert find_change(file, described, trust_time=True) == "has 1,024 bytes instead of 2,048"
    file.unlink()
    assert find_change(file, described, trust_time=True) == "is missing"
    assert find_change(file / "inner", described) == "is missing"
    file.mkdir()
    assert find_change(file, FileDigest(sha256=described.sha256)) == "is not a file"


def test_find_change_needs_no_more_than_the_sha256(file):
    """Records of an earlier format have neither sizes nor times."""
    described = FileDigest(sha256=hashlib.sha256(CONTENT).hexdigest())
    assert find_change(file, described) is None
    flip(file, 7)
    assert find_change(file, described) == "has changed since it was written"
    assert find_change(file, described, trust_time=True) is None


def test_checked_json_is_read_back_as_json_with_its_digest(tmp_path):
    write_checked(tmp_path / "record.json", json.dumps({"a": [1.5, None], "name": "caf\udce9 é"}, ensure_ascii=False))
    content = {"a": [1.5, None], "name": "caf\udce9 é"}
    assert json.loads(read_checked(tmp_path / "record.json")) == content
    stored = json.loads((tmp_path / "record.json").read_text())
    assert stored.pop("content_sha256") and stored == content


def test_checked_json_notices_every_flipped_byte_and_every_cut(tmp_path):
    path = tmp_path / "record.json"
    write_checked(path, '{"a": 1,\n "b": {"c": "}"}\n}')
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read_checked(path) is None, at
        path.write_bytes(whole[:at])
        assert read_checked(path) is None, at
    path.write_bytes(whole)
    assert read_checked(path) is not None
    assert read_checked(tmp_path / "missing") is None
