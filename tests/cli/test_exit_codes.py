"""Both commands turn errors and signals into the same messages and exit codes, whatever happens to their output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat import errors
from nanochat.cli import chat, run
from nanochat.cli.exit_codes import run_command
from nanochat.cli.progress import make_display

COMMANDS = {
    "run": (run.main, "nanochat.cli.verbs.recipe_commands.run"),
    "chat": (chat.main, "nanochat.cli.chat_loop.chat"),
}


@pytest.fixture(params=COMMANDS)
def fail_with(request, monkeypatch, tmp_path):
    """Return a function that lets a command raise an error and returns the command's exit code."""
    main, action = COMMANDS[request.param]

    def call(error: BaseException | None) -> int:
        def raise_error(*_arguments):
            if error is not None:
                raise error

        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        monkeypatch.setattr(action, raise_error)
        return main(["some.yaml"])

    return call


def test_full_disk_says_how_to_make_room(fail_with, capsys):
    assert fail_with(OSError(28, "No space left on device")) == 4
    assert "in `runs/` of the base folder, and type `nanochat-run gc`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (ZeroDivisionError("surprise"), 1),
        (errors.RecipeError("x"), 2),
        (errors.PreflightError("x"), 3),
        (errors.StageError("x"), 4),
        (errors.ExpectationError("x"), 5),
        (errors.LockError("x"), 6),
        (errors.InterruptedRun("x"), 75),
        (KeyboardInterrupt(), 75),
        (SystemExit(), 0),
        (SystemExit(7), 7),
        (SystemExit("a library gives up"), 1),
        (OSError(28, "No space left on device"), 4),
        (OSError(27, "File too large"), 4),
        (OSError(36, "File name too long", "x" * 300), 3),
        (PermissionError(13, "Permission denied", "x"), 3),
        (IsADirectoryError(21, "Is a directory", "x"), 3),
        (NotADirectoryError(20, "Not a directory", "x"), 3),
        (FileExistsError(17, "File exists", "x"), 3),
        (FileExistsError(17, "File exists", "/"), 1),
        (OSError(30, "Read-only file system", "x"), 3),
        (OSError(5, "Input/output error"), 1),
        (OSError(5, "Input/output error", "x"), 4),
        (OSError(116, "Stale file handle", "x"), 4),
        (BrokenPipeError(32, "Broken pipe"), 1),  # of another pipe: that of the output raises nothing
    ],
)
def test_each_kind_of_error_has_its_exit_code(fail_with, error, code):
    assert fail_with(error) == code


def test_a_deleted_working_directory_is_named(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert run_command(lambda: print(Path("recipe.yaml").resolve())) == 3
    assert capsys.readouterr().err == "error: the working directory no longer exists; change to another one\n"


def test_a_bug_prints_one_sentence_and_the_name_of_a_traceback_file(fail_with, capsys, tmp_path):
    fail_with(ZeroDivisionError("surprise"))
    message = capsys.readouterr().err
    (file,) = tmp_path.glob("nanochat-traceback-*.txt")
    assert str(file) in message and "Traceback" not in message
    assert "ZeroDivisionError: surprise" in file.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_result_that_cannot_be_printed_is_a_failure_and_a_lost_display_is_not(monkeypatch, capfd):
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(lambda: print("the result")) == 4
        assert "No space left" in capfd.readouterr().err
        assert run_command(lambda: make_display().log_line("a run")) == 0
        assert "No space left" in capfd.readouterr().err


def test_a_reader_that_goes_away_changes_no_exit_code(monkeypatch, fail_with):
    """So a pipe into `head` ends quietly, and hides no error."""
    reader, writer = os.pipe()
    os.close(reader)

    def print_and_fail():
        print("lost")
        raise errors.InterruptedRun("saved")

    with os.fdopen(writer, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "stderr", pipe)
        assert run_command(lambda: print("lost")) == 0
        assert run_command(print_and_fail) == 75


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_to_stop_end_a_command_with_75(number, capsys):
    before = signal.signal(number, signal.default_int_handler)  # even if these tests ignore it
    try:
        assert run_command(lambda: os.kill(os.getpid(), number)) == 75
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err == "stopped\n"


def test_an_error_that_a_library_makes_of_a_signal_is_no_bug(capsys):
    def interrupted_import():
        try:
            raise KeyboardInterrupt
        except BaseException as error:
            raise ImportError("a library cannot be imported") from error

    assert run_command(interrupted_import) == 75
    assert capsys.readouterr().err == "stopped\n"


INTERRUPTED_IMPORT = """
import builtins, os, signal, sys, weakref
from nanochat.cli.run import main
real = builtins.__import__
def interrupt(name, *arguments, **settings):
    if name == {name!r}:
        builtins.__import__ = real
        if {is_dropped}:  # Python drops exceptions in the callbacks of weak references, which every import has
            kept = type("Kept", (), {{}})()
            watched = weakref.ref(kept, lambda _: os.kill(os.getpid(), signal.SIGINT))
            del kept
        else:
            os.kill(os.getpid(), signal.SIGINT)
    return real(name, *arguments, **settings)
builtins.__import__ = interrupt
sys.argv = ["nanochat-run", "ls"]
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("name", "is_dropped"),
    [
        ("nanochat.cli.exit_codes", False),
        ("nanochat.cli.arguments.commands", False),
        ("nanochat.cli.arguments.commands", True),
    ],
)
def test_ctrl_c_during_the_imports_gives_no_traceback(name, is_dropped):
    code = INTERRUPTED_IMPORT.format(name=name, is_dropped=is_dropped)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 75
    assert done.stderr in ("", "stopped\n")


def test_ctrl_c_after_the_command_ends_the_process_silently_with_its_code():
    """Python waits for threads when it exits, and would print a traceback."""
    code = (
        "import os, signal, sys, threading, time\n"
        "from nanochat.cli.run import main\n"
        "def press():\n    time.sleep(0.2)\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
        "sys.argv = ['nanochat-run', 'report', 'nothing']\n"
        "code = main()\n"
        "threading.Thread(target=press).start()\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
