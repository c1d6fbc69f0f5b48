"""`nanochat-chat RUN_OR_CHECKPOINT`: talk to a model.

On a terminal a conversation with streaming answers; otherwise every line of the standard input is a message (or a
command) and answers are all that goes to the standard output. `--prompt` answers once.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

from nanochat import runtime
from nanochat.cli import chat_commands as commands
from nanochat.errors import OK, NanochatError, RecipeError

if TYPE_CHECKING:  # MLX must not be imported before `runtime.prepare`
    from nanochat.inference.chat import ChatSession

USAGE = RecipeError.exit_code
STOPPED = 128 + signal.SIGINT
YOU, MODEL = "you> ", "model> "


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for what the user must change, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        session = _open(options)
        if options.prompt is not None:
            return _answer(session, options.prompt)
        return _converse(session, is_terminal=sys.stdin.isatty() and sys.stdout.isatty())
    except NanochatError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return STOPPED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nanochat-chat", description="Talk to a model.")
    parser.add_argument("model", metavar="RUN_OR_CHECKPOINT", help="a run's name or folder, a stage or model folder")
    parser.add_argument("--prompt", help="answer this and leave")
    parser.add_argument("--system", help="system prompt")
    parser.add_argument("--temperature", type=_temperature, help="sampling temperature, 0 is greedy (default 0.8)")
    parser.add_argument("--top-k", type=_count, help="sample among the K likeliest tokens (default 50)")
    parser.add_argument("--max-tokens", type=_count, help="longest answer (default 256)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same answers (default 42)")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    return parser


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return value


def _open(options: argparse.Namespace) -> ChatSession:
    chosen = runtime.prepare(device=options.device)
    import mlx.core as mx

    from nanochat.checkpoint.model_folder import load_model, load_tokenizer
    from nanochat.inference.chat import ChatSession, ChatSettings
    from nanochat.inference.engine import Engine
    from nanochat.model.device import select_device
    from nanochat.runner.store.runs import resolve_model

    select_device(chosen.backend)
    folder = resolve_model(options.model, runtime.base_dir())
    model = load_model(folder, mx.bfloat16 if chosen.dtype == "bfloat16" else mx.float32)
    given = {"temperature": options.temperature, "top_k": options.top_k}
    given |= {"max_tokens": options.max_tokens, "seed": options.seed}
    settings = ChatSettings(**{name: value for name, value in given.items() if value is not None})
    return ChatSession(Engine(model, load_tokenizer(folder)), system=options.system, settings=settings)


def _answer(session: ChatSession, text: str) -> int:
    for piece in session.reply(text):
        print(piece, end="", flush=True)
    print()
    return OK


def _converse(session: ChatSession, *, is_terminal: bool) -> int:
    if is_terminal:
        import readline  # noqa: F401 -- importing it gives `input` history and editing

        size = session.engine.model.config
        print(f"{size.n_layer} layers, width {size.n_embd}, context {size.sequence_len} tokens; /help lists commands")
    while True:
        try:
            line = input(YOU if is_terminal else "")
        except EOFError:
            return OK
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print("\n(Ctrl-D or /quit leaves)")
            continue
        if not _obey(session, commands.parse_line(line), is_terminal=is_terminal):
            return OK


def _obey(session: ChatSession, line: commands.Line, *, is_terminal: bool) -> bool:
    """Do what a line says; return whether the chat goes on."""
    notice: str | None = None
    match line:
        case commands.Say(text):
            _say(session, text, is_terminal=is_terminal)
        case commands.Nothing():
            pass
        case commands.Quit():
            return False
        case commands.Reset():
            session.reset()
            notice = "a new conversation"
        case commands.SetSystem(text):
            session.system = text
            notice = "no system prompt" if text is None else "system prompt set"
        case commands.SetTemperature(value):
            session.change(temperature=value)
            notice = f"temperature {value:g}"
        case commands.SetMaxTokens(value):
            session.change(max_tokens=value)
            notice = f"answers of at most {value} tokens"
        case commands.Help():
            notice = commands.HELP
        case commands.Invalid(message):
            notice = message
        case _:
            assert_never(line)
    if notice is not None:
        print(notice, file=sys.stderr)
    return True


def _say(session: ChatSession, text: str, *, is_terminal: bool) -> None:
    if is_terminal:
        print(MODEL, end="", flush=True)
    pieces = session.reply(text)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        print(" (stopped)", end="")
    except NanochatError as error:
        print(f"error: {error}", file=sys.stderr)
    finally:
        pieces.close()
    print()
