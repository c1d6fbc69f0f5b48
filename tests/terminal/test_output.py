"""Printing survives whatever happens to the standard output, and no text controls the terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanochat.terminal.output import Output, allow_loss, is_read, printable, protected_output


@pytest.fixture
def printing_to(monkeypatch):
    """Return a function that makes a file descriptor the standard output."""

    opened = []

    def use(descriptor: int, encoding: str = "utf-8") -> None:
        opened.append(os.fdopen(descriptor, "w", encoding=encoding))
        monkeypatch.setattr(sys, "stdout", opened[-1])

    yield use
    for file in opened:
        file.close()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),  # the same as ESC [ in one character
        ("a\rb\bc\x7f\x00", "a\\rb\\x08c\\x7f\\x00"),
        ("\u202egnp.exe", "\\u202egnp.exe"),  # shown from right to left, it would read "exe.png"
        ("tab\tand\nnewline, é, 中, 👩\u200d🚀", "tab\tand\nnewline, é, 中, 👩\u200d🚀"),
    ],
)
def test_printable_escapes_what_controls_a_terminal(text, shown):
    assert printable(text) == shown


def test_printed_text_is_escaped_but_not_what_draws_on_the_terminal(printing_to):
    reader, writer = os.pipe()
    printing_to(writer)
    with protected_output():
        print("\x1b[2J")
        sys.stdout.unescaped.write("\x1b[2J")
        sys.stdout.unescaped.flush()
    assert os.read(reader, 100) == b"\\x1b[2J\n\x1b[2J"
    os.close(reader)


def test_characters_that_the_encoding_lacks_are_replaced(printing_to):
    reader, writer = os.pipe()
    printing_to(writer, "ascii")
    with protected_output():
        print("é → \udcff")
    assert os.read(reader, 100) == b"\\xe9 \\u2192 \\udcff\n"
    os.close(reader)


def test_output_encoding_can_be_chosen_whatever_the_terminal_has(printing_to):
    reader, writer = os.pipe()
    printing_to(writer, "ascii")
    with protected_output("utf-8"):
        print("é")
    assert os.read(reader, 100) == b"\xc3\xa9\n"
    os.close(reader)


def test_a_reader_that_goes_away_ends_nothing(printing_to):
    reader, writer = os.pipe()
    os.close(reader)
    printing_to(writer)
    with protected_output():
        assert is_read()
        print("lost")
        print("lost too")
        assert not is_read()
        assert sys.stdout.problem is None


def test_a_closed_terminal_ends_nothing_and_stays_a_terminal(printing_to):
    """It stays one for `rich`, which would otherwise change its mind in the middle of a progress bar."""
    master, slave = pty.openpty()
    printing_to(slave)
    with protected_output():
        os.close(master)
        print("lost")
        assert not is_read()
        assert sys.stdout.isatty()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_remembered_and_ends_nothing(printing_to):
    printing_to(os.open("/dev/full", os.O_WRONLY))
    with protected_output():
        print("lost")
        assert is_read()
        assert "No space left" in str(sys.stdout.problem)
        assert not sys.stdout.may_be_lost
        allow_loss()
        assert sys.stdout.may_be_lost


def test_output_waits_for_a_reader_of_a_pipe_that_does_not_block(printing_to):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    printing_to(writer)
    received = bytearray()

    def read() -> None:
        while part := os.read(reader, 1 << 16):
            received.extend(part)

    text = "x" * (1 << 20) + "\n"  # a pipe holds 64 KiB
    thread = threading.Thread(target=read)
    with protected_output():
        thread.start()
        print(text, end="")
    sys.stdout.close()
    thread.join(20)
    os.close(reader)
    assert received.decode() == text


def test_a_display_does_not_wait_for_a_reader_that_does_not_read_before_the_end(printing_to):
    """So a run continues behind a terminal after Ctrl-S, and behind `less`."""
    reader, writer = os.pipe()
    printing_to(writer)
    received = bytearray()

    def read() -> None:
        while part := os.read(reader, 1 << 16):
            received.extend(part)

    text = "x" * 200_000 + "\n"  # a pipe holds 64 KiB
    thread = threading.Thread(target=read)
    with protected_output():
        allow_loss()
        print(text, end="")
        print("the end")
        thread.start()
    sys.stdout.close()
    thread.join(20)
    os.close(reader)
    assert received.decode() == text + "the end\n"


def test_text_that_is_only_collected_is_left_alone(monkeypatch):
    collected = io.StringIO()
    monkeypatch.setattr(sys, "stdout", collected)
    with protected_output():
        print("\x1b")
        assert not isinstance(sys.stdout, Output)
    assert collected.getvalue() == "\x1b\n"


CLOSED = """
import os, sys
from nanochat.terminal.output import protected_output
with protected_output():
    print("out")
    print("err", file=sys.stderr)
    opened = os.open(os.devnull, os.O_RDONLY)
    os.write({kept}, f"{{sys.stdin.read()!r}} {{opened > 2}}".encode())
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1), (0, 1, 2)], ids=str)
def test_closed_standard_streams_are_replaced_by_the_null_device(closed):
    """Otherwise the next file that is opened would be taken for one of them and filled with messages."""
    reader, writer = os.pipe()

    def close() -> None:
        for number in closed:
            os.close(number)

    code = CLOSED.format(kept=writer)
    null = subprocess.DEVNULL
    command = [sys.executable, "-c", code]
    subprocess.run(command, stdin=null, stdout=null, stderr=null, pass_fds=(writer,), preexec_fn=close, check=True)
    assert os.read(reader, 100) == b"'' True"
    os.close(reader)
    os.close(writer)


def test_input_that_is_not_utf_8_is_read_as_surrogates():
    code = (
        "import sys\nfrom nanochat.terminal.output import protected_output\n"
        "with protected_output():\n    print(ascii(sys.stdin.read()))\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], input=b"\xc3\xa9\xff", capture_output=True, env=environment)
    assert done.stdout == b"'\\xe9\\udcff'\n"
