"""Runs `nanochat-chat`: one answer, or a conversation on a terminal or with the lines of the standard input.

Not here: the entry point (`chat`), the commands of a chat (`slash_commands`), and how answers are generated
(`inference`).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from nanochat import runtime
from nanochat.api.models import open_engine
from nanochat.cli.arguments.parser import Parser, add_device, add_version, count, positive, share, temperature
from nanochat.cli.slash_commands import run_command
from nanochat.errors import NanochatError, PreflightError, RecipeError
from nanochat.inference.chat_settings import ChatSettings
from nanochat.plurals import several
from nanochat.terminal.output import is_read

if TYPE_CHECKING:  # MLX must not be imported before `runtime.prepare`
    from nanochat.inference.chat_session import ChatSession


def chat(arguments: Sequence[str]) -> None:
    """Answer one message, or those that are typed or come from the standard input.

    Raises:
        RecipeError: the arguments are wrong, or lines that do not come from a terminal could not be answered.
        PreflightError: there is no such model, or the standard input cannot be read.
    """
    options = make_parser().parse_args(arguments)
    if options.raw and options.system is not None:
        raise RecipeError("--raw continues a text as it is, so it takes no --system")
    prompt = _read_input() if options.prompt == "-" else options.prompt
    session = _open_session(options)
    if prompt is not None:
        _print_reply(session, prompt)
        print()
        _print_notes(session)
    else:
        _converse(session, is_terminal=sys.stdin.isatty() and sys.stdout.isatty())


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="nanochat-chat",
        description="Talk to a model. On a terminal you type messages and commands; otherwise every line of the"
        " standard input is a message or a command, and only the answers go to the standard output.",
        epilog="Type /help in a chat for its commands. The exit codes are those of nanochat-run.",
    )
    parser.add_argument("model", metavar="RUN_OR_CHECKPOINT", help="name or folder of a run, or a folder with a model")
    parser.add_argument(
        "--prompt", type=_text, help="answer this message and exit; `-` reads it from the standard input"
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the text instead of answering, as a base model does"
    )
    parser.add_argument("--system", type=_text, help="system prompt")
    for flag, parse, meaning in (
        ("--temperature", temperature, "sampling temperature; 0 is greedy"),
        ("--top-k", positive, "sample from the K most likely tokens"),
        ("--top-p", share, "sample from the most likely tokens that reach this probability"),
        ("--max-tokens", positive, "maximum length of an answer, in tokens"),
        ("--seed", count, "random seed; the same seed gives the same answers"),
    ):
        parser.add_argument(flag, type=parse, help=f"{meaning} (default: %(default)s)")
    parser.set_defaults(**asdict(ChatSettings()))
    add_device(parser)
    add_version(parser)
    return parser


def _text(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):  # bytes that Python could not decode
        raise argparse.ArgumentTypeError(f"{text!r} is not valid UTF-8")
    return text


def _read_input() -> str:
    """Return the whole standard input, without the line break at its end."""
    try:
        return _text(sys.stdin.read().removesuffix("\n"))
    except (OSError, ValueError, argparse.ArgumentTypeError) as error:
        raise PreflightError(f"the standard input cannot be read: {error}") from None


def _open_session(options: argparse.Namespace) -> ChatSession:
    chosen = runtime.prepare(device=options.device)
    from nanochat.inference.chat_session import ChatSession
    from nanochat.runner.store.run_catalog import find_model

    folder = find_model(options.model, runtime.base_dir())
    settings = ChatSettings(**{field.name: getattr(options, field.name) for field in fields(ChatSettings)})
    return ChatSession(open_engine(folder, chosen), system=options.system, settings=settings, is_raw=options.raw)


def _converse(session: ChatSession, *, is_terminal: bool) -> None:
    if is_terminal:
        import readline  # noqa: F401 -- importing it gives `input` history and editing

        size = session.engine.model.config
        print(
            f"{several(size.n_layer, 'layer')}, width {size.n_embd}, context {size.sequence_len} tokens; "
            "/help lists commands"
        )
    failed = 0
    while is_read():
        try:
            line = input("you> " if is_terminal else "")
        except EOFError:
            break
        except OSError as error:
            raise PreflightError(f"the standard input cannot be read: {error}") from error
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print("\n(press Ctrl-D or type /quit to leave)")
            continue
        text = line.strip()
        if text and (not text.startswith("/") or text.startswith("//")):
            failed += not _reply(session, text.removeprefix("/"), is_terminal=is_terminal)
        elif text:
            try:
                notice = run_command(session, text)
            except RecipeError as error:
                notice = str(error)
                failed += 1
            if notice is None:
                break
            print(notice, file=sys.stderr)
    if failed and not is_terminal:
        raise RecipeError(f"{several(failed, 'line')} of the input could not be used, for the reasons above")


def _reply(session: ChatSession, text: str, *, is_terminal: bool) -> bool:
    """Print the answer, and return whether there is one. On a terminal Ctrl-C stops the answer and not the chat."""
    if is_terminal:
        print("model> ", end="", flush=True)
    is_answered = True
    try:
        _print_reply(session, text)
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        print(" (stopped)", end="")
    except NanochatError as error:
        print(f"error: {error}", file=sys.stderr)
        is_answered = False
    print()
    _print_notes(session)
    return is_answered


def _print_reply(session: ChatSession, text: str) -> None:
    with contextlib.closing(session.reply(text)) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
            if not is_read():
                break


def _print_notes(session: ChatSession) -> None:
    """Print a note on text that did not fit in the last turn, to the standard error."""
    for note in session.notes:
        print(f"({note})", file=sys.stderr)
