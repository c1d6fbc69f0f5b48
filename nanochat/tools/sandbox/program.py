"""The program's process: runs the program's source, then calls its functions as the judge asks.

Nothing here decides anything. This process holds neither the tests nor the pipe for the verdict, and what it writes is
only ever read as data. A program that takes control of it can return other values, which is what any program can do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from typing import Any, NoReturn

from nanochat.tools.sandbox import plain_data

MODULE = "program"
"""The module's name: not `__main__`, so that the program's own demonstration or tests do not run."""
_SHOWN_FRAMES = -8


def serve(source: str, calls: int, replies: int) -> NoReturn:
    """Run `source`, answer calls until the judge has gone, and end this process.

    The first reply is the list of names that can be called, or an error. A call is a list: a name, positional and
    keyword arguments, and a token. So is its reply: the outcome (`returned` or `raised`), the value or the exception's
    name and text, the arguments after the call, and the same token, which shows which call it answers.
    """
    try:
        module = types.ModuleType(MODULE)
        sys.modules[MODULE] = module
        names = module.__dict__
        try:
            exec(compile(source, f"{MODULE}.py", "exec", dont_inherit=True), names)
        except BaseException as error:  # noqa: BLE001 -- a program that exits or is interrupted has failed
            _show(error)
            _reply(replies, ["raised", *_describe(error)])
            os._exit(1)
        _reply(replies, ["defined", [name for name, value in names.items() if callable(value)]])
        while True:
            name, positional, keywords, token = plain_data.load(plain_data.read_frame(calls))
            _reply(replies, _call(names[name], positional, keywords), token)
    except EOFError:
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 -- nothing may return into the supervisor's code
        _show(error)
        os._exit(1)


def _call(function: Any, positional: list[Any], keywords: dict[str, Any]) -> list[Any]:
    try:
        return ["returned", function(*positional, **keywords), positional, keywords]
    except BaseException as error:  # noqa: BLE001 -- the judge raises it again
        _show(error)
        return ["raised", _describe(error), positional, keywords]


def _reply(replies: int, reply: list[Any], token: str | None = None) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # the program may have replaced its own output
        sys.stdout.flush()
    try:
        frame = plain_data.dump(reply if token is None else [*reply, token])
    except (TypeError, RecursionError, MemoryError) as error:
        _show(error)
        frame = plain_data.dump(["raised", _describe(error), [], {}, token])
    plain_data.write_frame(replies, frame)


def _describe(error: BaseException) -> list[str]:
    return [type(error).__name__, str(error)]


def _show(error: BaseException) -> None:
    import traceback  # imported late: most programs that run do not need it

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != f"{MODULE}.py":
        trace = trace.tb_next
    with contextlib.suppress(AttributeError, OSError, ValueError):
        traceback.print_exception(error.with_traceback(trace), limit=_SHOWN_FRAMES)
        sys.stderr.flush()
