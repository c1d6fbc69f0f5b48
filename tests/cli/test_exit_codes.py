"""Both commands turn errors into the same messages and exit codes."""

from __future__ import annotations

import pytest

from nanochat import errors
from nanochat.cli import chat, run

COMMANDS = {"run": (run.main, "nanochat.cli.recipe_commands.run"), "chat": (chat.main, "nanochat.cli.chat._chat")}


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
        (OSError(28, "No space left on device"), 4),
        (OSError(36, "File name too long", "x" * 300), 3),
        (OSError(5, "Input/output error"), 1),
    ],
)
def test_each_kind_of_error_has_its_exit_code(fail_with, error, code):
    assert fail_with(error) == code


def test_a_bug_prints_one_sentence_and_the_name_of_a_traceback_file(fail_with, capsys, tmp_path):
    fail_with(ZeroDivisionError("surprise"))
    message = capsys.readouterr().err
    (file,) = tmp_path.glob("nanochat-traceback-*.txt")
    assert str(file) in message and "Traceback" not in message
    assert "ZeroDivisionError: surprise" in file.read_text()
