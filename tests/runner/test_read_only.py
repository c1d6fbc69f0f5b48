"""Tests that a base folder that may not be written is named, and that what only reads works there.

The permissions are those of the operating system: an administrator gives up the right to ignore them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanochat import runtime
from nanochat.cli import run as command
from nanochat.errors import PreflightError

_CAPABILITIES_VERSION_3 = 0x20080522
_OVERRIDE, _READ_SEARCH = 1, 2


@contextmanager
def respecting_permissions() -> Iterator[None]:
    """Let the rights of files hold for this thread, as they do for everybody but the administrator."""
    if os.getuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "capset"):
        pytest.skip("root on this system ignores permissions")
    header, held = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, held) == 0
    fewer = (ctypes.c_uint32 * 6)(*held)
    fewer[0] &= ~(1 << _OVERRIDE | 1 << _READ_SEARCH)
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Take away the right to write in a folder and everything below it."""
    paths = [folder, *(path for path in folder.rglob("*") if not path.is_symlink())]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    try:
        with respecting_permissions():
            yield
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.fixture
def finished(finished):
    """The bench whose recipe has run, without the calls of that run."""
    finished.calls()
    return finished


READING = [
    (["ls"], "tiny/"),
    (["report", "tiny"], "| chat_eval | spelling | 0.75 |"),
    (["compare", "tiny", "tiny"], "| chat_eval.spelling | 0.75"),
    (["plan", "RECIPE"], "cached: finished"),
    (["check", "RECIPE"], "ok"),
    (["data", "RECIPE"], "documents"),
    (["show", "RECIPE"], "name: tiny"),
    (["gc", "--dry-run"], "would delete 0 stage outputs"),
    (["RECIPE"], "this run is not recorded"),
]
WRITING = (["RECIPE", "--set", "seed=7"], ["RECIPE", "--set", "name=other"], ["fetch", "RECIPE"], ["gc"])


def call(bench, arguments: list[str]) -> int:
    return command.main([str(bench.recipe) if word == "RECIPE" else word for word in arguments])


def test_commands_that_only_read_work_with_a_base_folder_of_somebody_else(finished, capsys):
    """A recipe whose stages are all finished only has to be shown."""
    (finished.base / "file_digests.json").unlink(missing_ok=True)
    before = {path: path.stat().st_mtime_ns for path in finished.base.rglob("*")}
    with read_only(finished.base):
        for arguments, shown in READING:
            code, said = call(finished, arguments), capsys.readouterr()
            assert (arguments, code, said.err) == (arguments, 0, "")
            assert shown in said.out
    assert {path: path.stat().st_mtime_ns for path in finished.base.rglob("*")} == before


def test_report_that_may_not_be_written_is_shown_from_the_current_records(finished, capsys):
    (report,) = finished.base.glob("runs/tiny/*/report.md")
    report.write_text("old")
    with read_only(finished.base):
        assert command.main(["report", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "| chat_eval | spelling | 0.75 |" in said and f"not written: {report}: Permission denied" in said
    assert report.read_text() == "old"


def test_model_of_a_base_folder_of_somebody_else_can_be_loaded(finished):
    from nanochat.runner.store.run_catalog import resolve_model
    from nanochat.runner.store.verification import check_model

    with read_only(finished.base):
        check_model(resolve_model("tiny", finished.base))


def test_commands_that_write_end_with_3_and_name_the_folder_and_the_remedy(finished, capsys):
    with read_only(finished.base):
        for arguments in WRITING:
            code, error = call(finished, arguments), capsys.readouterr().err
            assert (arguments, code) == (arguments, 3)
            assert f"the base folder {finished.base} cannot be written (Permission denied" in error
            assert "set NANOCHAT_BASE_DIR" in error
    assert finished.calls() == []


@pytest.mark.parametrize("what", ["a file", "a closed folder", "a read-only file system"])
def test_base_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch, what):
    base = tmp_path / "closed" / "base"
    if what == "a file":
        base.parent.write_text("")
    else:
        base.parent.mkdir()
    if what == "a read-only file system":

        def fail(path: Path, *_: object, **__: object) -> None:
            raise OSError(errno.EROFS, "Read-only file system", str(path))

        monkeypatch.setattr("nanochat.storage.files.make_folder", fail)
    with read_only(tmp_path), pytest.raises(PreflightError, match=rf"{base} cannot be written .*NANOCHAT_BASE_DIR"):
        runtime.check_base_dir(base)


@pytest.mark.parametrize(("name", "value"), [("HOME", None), ("NANOCHAT_BASE_DIR", "~nobody-of-this-name/x")])
def test_user_without_a_home_folder_is_told_to_name_one(name, value, monkeypatch, capsys):
    """Containers run with user ids that no file describes."""

    def unknown(user: object) -> None:
        raise KeyError(user)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for variable in ("HOME", "NANOCHAT_BASE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    assert command.main(["ls"]) == 3
    said = capsys.readouterr()
    assert said.out == "" and "there is no such home folder; set NANOCHAT_BASE_DIR" in said.err


def test_report_that_a_full_disk_does_not_take_is_shown(finished, monkeypatch, capsys):
    def write(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanochat.runner.report.refresh.write_report", write)
    assert command.main(["report", "tiny"]) == 0
    said = capsys.readouterr().out
    assert "| chat_eval | spelling | 0.75 |" in said and "report.md: No space left on device" in said
