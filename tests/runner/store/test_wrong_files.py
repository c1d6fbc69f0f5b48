"""A folder or a pipe in place of a file of the base folder is named, and neither a bug nor the end of a command."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal

import pytest

from nanochat.cli.exit_codes import run_command
from nanochat.cli.run import main
from nanochat.data.ingest.__main__ import main as convert_files
from nanochat.data.token_cache.parts import LOCK_FILE, locked

FILES = ("claims.lock", "runs/tiny/.lock", "runs/tiny/2*/run.json", "stages/sft/*/lock", "stages/sft/*/record.json")


@pytest.fixture
def _no_waiting():
    """Raise an error if a command waits for the other end of a pipe."""

    def stop(number, frame):
        raise AssertionError("a command waits for a pipe")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def replace_by(kind, path):
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("kind", ["folder", "pipe"])
@pytest.mark.parametrize("name", FILES)
def test_wrong_file_is_named_or_replaced_by_a_run(finished, capsys, name, kind):
    folder, _, file = name.rpartition("/")
    path = next(finished.base.glob(folder)) / file if folder else finished.base / file
    replace_by(kind, path)
    code = run_command(lambda: finished.run(force=("sft",), only="sft"))
    said = capsys.readouterr().err
    assert code in (0, 3) and "bug" not in said
    assert code == 0 or f"{path} is a {kind}" in said.replace("a pipe or a device", "a pipe")
    assert main(["ls"]) in (0, 3)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    assert run_command(finished.run) == 0, "the advice is to move it away"


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("name", ["ingest/.lock", "tokens/0123456789abcdef/.lock"])
def test_gc_does_not_wait_for_a_pipe_in_place_of_a_lock(tmp_path, monkeypatch, name):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    (tmp_path / name).parent.mkdir(parents=True)
    replace_by("pipe", tmp_path / name)
    assert main(["gc"]) == 0


@pytest.mark.usefixtures("_no_waiting")
def test_writing_token_files_names_a_pipe_in_place_of_the_lock(tmp_path):
    os.mkfifo(tmp_path / LOCK_FILE)
    with (
        pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path / LOCK_FILE))),
        locked(tmp_path, lambda *_: None),
    ):
        pass


@pytest.mark.usefixtures("_no_waiting")
def test_conversion_names_a_pipe_in_place_of_its_lock(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("[]"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):  # which the conversion sets for its process
        monkeypatch.setenv(name, "1")
    (tmp_path / "ingest").mkdir()
    os.mkfifo(tmp_path / "ingest" / LOCK_FILE)
    assert convert_files([str(tmp_path)]) == 3
    assert "ingest/.lock is a pipe or a device, but must be a file" in capsys.readouterr().out
