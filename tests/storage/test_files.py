"""Whole files and folders are complete or absent, also after a failed write, a kill and a power cut."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
from pathlib import Path

import pytest

import nanochat
from nanochat.storage import files

DEAD_PID = 999_999_999  # above the largest process id that Linux hands out


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def calls(monkeypatch):
    """Record every fsync (with the file it is called for) and rename, in order."""
    record = []
    real_fsync, real_replace, real_rename = os.fsync, Path.replace, Path.rename

    def fsync(descriptor):
        record.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        real_fsync(descriptor)

    def renaming(real):
        def rename(path, target):
            record.append(("rename", Path(target).name))
            return real(path, target)

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", renaming(real_replace))
    monkeypatch.setattr(Path, "rename", renaming(real_rename))
    return record


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of open files from /proc")
class TestFlushing:
    def test_write_text_flushes_the_file_before_the_rename_and_the_folder_after_it(self, tmp_path, calls):
        files.write_text(tmp_path / "run.json", "new")
        scratch = f".writing-{os.getpid()}-run.json"
        assert calls == [("fsync", scratch), ("rename", "run.json"), ("fsync", tmp_path.name)]

    def test_write_text_flushes_the_name_of_every_folder_that_it_creates(self, tmp_path, calls):
        files.write_text(tmp_path / "a" / "b" / "run.json", "new")
        assert [name for call, name in calls if call == "fsync"][:2] == [tmp_path.name, "a"]
        assert calls[-1] == ("fsync", "b")

    def test_write_bytes_flushes_nothing_if_not_durable(self, tmp_path, calls):
        files.write_bytes(tmp_path / "a" / "progress.json", b"new", durable=False)
        assert calls == [("rename", "progress.json")]

    def test_new_folder_flushes_every_file_before_the_rename_and_the_parent_after_it(self, tmp_path, calls):
        with files.new_folder(tmp_path / "model") as scratch:
            (scratch / "inner").mkdir()
            (scratch / "inner" / "weights").write_bytes(b"w")
            (scratch / "config").write_bytes(b"c")
        expected = ["config", "inner", "weights", f".writing-{os.getpid()}-model", "model", tmp_path.name]
        assert [name for _, name in calls] == expected
        assert [call for call, _ in calls] == ["fsync"] * 4 + ["rename", "fsync"]


def test_write_text_creates_parents_and_encodes_as_utf8(tmp_path):
    path = tmp_path / "a" / "b.txt"
    files.write_text(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    assert names_in(path.parent) == ["b.txt"]


def test_write_text_leaves_the_old_file_if_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    files.write_text(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["run.json"]


def test_atomic_write_leaves_the_old_file_if_the_writer_fails_halfway(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.atomic_write(path) as scratch:
        scratch.write_bytes(b"ha")
        assert path.read_bytes() == b"old"
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["weights.bin"]


def test_atomic_write_keeps_the_suffix_for_writers_that_look_at_it(tmp_path):
    with files.atomic_write(tmp_path / "model.safetensors") as scratch:
        assert scratch.suffix == ".safetensors" and scratch.parent == tmp_path
        scratch.touch()


def test_new_folder_replaces_the_old_one_as_a_whole_unless_the_writer_fails(tmp_path):
    for name in ("old", "new"):
        with files.new_folder(tmp_path / "model") as scratch:
            (scratch / name).touch()
    with pytest.raises(ValueError), files.new_folder(tmp_path / "model") as scratch:
        (scratch / "newest").touch()
        raise ValueError
    assert names_in(tmp_path) == ["model"]
    assert names_in(tmp_path / "model") == ["new"]


def test_new_folder_deletes_what_a_killed_process_left_for_the_same_target(tmp_path):
    """The process with id 1 always runs, and another target may be in use on another machine."""
    leftovers = [f".writing-{DEAD_PID}-model", f".writing-{DEAD_PID}-old-model", f".writing-{os.getpid()}-model"]
    kept = [".writing-1-model", f".writing-{DEAD_PID}-other", ".writing-model"]
    for name in (*leftovers, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    with files.new_folder(tmp_path / "model"):
        pass
    assert names_in(tmp_path) == sorted(["model", *kept])


def test_delete_scratch_deletes_files_and_folders_at_any_depth(tmp_path):
    (tmp_path / "out" / f".writing-{DEAD_PID}-model").mkdir(parents=True)
    (tmp_path / "out" / f".writing-{DEAD_PID}-model" / ".writing-1-config.json").touch()
    (tmp_path / ".writing-7-job.json").touch()
    (tmp_path / "out" / "result.json").touch()
    files.delete_scratch(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "result.json"]


def test_sha256_of_file_is_the_hash_of_all_of_it(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "file").write_bytes(content)
    assert files.sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 2_560_000, 2_560_001])
def test_sha256_of_pieces_is_the_hash_of_each_piece(tmp_path, size):
    content = (bytes(range(256)) * 10_001)[:size]
    (tmp_path / "file").write_bytes(content)
    expected = [hashlib.sha256(content[at : at + 1_280_000]).hexdigest() for at in range(0, size, 1_280_000)]
    assert files.sha256_of_pieces(tmp_path / "file", 1_280_000) == expected


def test_folder_bytes_counts_files_at_any_depth_but_not_links(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "three").write_bytes(b"123")
    (tmp_path / "two").write_bytes(b"12")
    (tmp_path / "link").symlink_to(tmp_path / "two")
    assert files.folder_bytes(tmp_path) == 5


# These rename folders that they are about to delete.
DELETING = ("runner/store/cleanup/checkpoint_cleanup.py", "runner/store/cleanup/gc.py")
WRITING = ("write_text", "write_bytes", "fsync", "file_digest", "rename")


def test_no_other_module_writes_whole_files_flushes_or_hashes_them():
    """Path.replace takes one argument, unlike str.replace and dataclasses.replace."""
    package = Path(nanochat.__file__).parent
    texts = {path.relative_to(package).as_posix(): path.read_text() for path in package.rglob("*.py")}
    named = re.compile(rf"\.({'|'.join(WRITING)}|replace)\(")
    modules = {name: ast.parse(text) for name, text in texts.items() if named.search(text)}
    offenders = [
        f"{name}:{node.lineno}: {node.func.attr}"
        for name, module in modules.items()
        if name not in ("storage/files.py", *DELETING)
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in WRITING or (node.func.attr == "replace" and len(node.args) + len(node.keywords) == 1)
    ]
    assert offenders == []
