"""What tests of the sandbox share: the isolations that work here, and a place that programs must leave unchanged."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from nanochat.errors import StageError
from nanochat.tools.sandbox.run import run_tests
from nanochat.tools.sandbox.settings import Isolation


@cache
def _why_not(isolation: Isolation) -> str | None:
    try:
        outcome = run_tests("def f(): return 1", "assert f() == 1", functions=["f"], isolation=isolation)
    except StageError as error:
        return str(error)
    return None if outcome.passed else outcome.message


@pytest.fixture(params=["seatbelt"] if sys.platform == "darwin" else ["namespaces", "landlock"])
def isolation(request: pytest.FixtureRequest) -> Isolation:
    """Each isolation that works here."""
    if reason := _why_not(request.param):
        pytest.skip(reason)
    isolation: Isolation = request.param
    return isolation


@pytest.fixture
def processes_of() -> Callable[[Path], list[str]]:
    """A function that returns the ids of the processes that were started for sandboxes in a folder."""

    def find(folder: Path) -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"HOME={folder}".encode() in (entry / "environ").read_bytes():
                    found.append(entry.name)
        return found

    return find


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can reach, unlike pytest's own: root's programs run as nobody."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def sandboxes(
    reachable: Path, monkeypatch: pytest.MonkeyPatch, processes_of: Callable[[Path], list[str]]
) -> Iterator[Path]:
    """The parent folder of all sandboxes. It must be empty, and without processes, at the end of the test."""
    folder = reachable / "sandboxes"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("SECRET_OF_THE_TEST", "1")
    yield folder
    assert list(folder.iterdir()) == []
    if sys.platform == "linux":
        assert processes_of(folder) == []


@pytest.fixture
def outside(reachable: Path) -> Iterator[Path]:
    """A folder that everybody can write to but that must not be changed."""
    folder = reachable / "outside"
    folder.mkdir()
    folder.chmod(0o777)
    kept = folder / "kept"
    kept.write_text("kept")
    kept.chmod(0o666)
    before = kept.stat()
    yield folder
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert kept.read_text() == "kept"
    after = kept.stat()
    for name in ("st_mode", "st_nlink", "st_ino", "st_mtime_ns"):
        assert getattr(after, name) == getattr(before, name), name


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a socket that must not receive a connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()
