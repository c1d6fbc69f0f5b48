"""The judge's process: runs the tests, which call the program's functions in the other process.

The tests come from the data set and are trusted to decide. What a call returns is new plain data (`plain_data`), so
that comparisons mean what Python's own types say. The judge is isolated like the program, since a data set is a
download.
"""

from __future__ import annotations

import builtins
import contextlib
import linecache
import os
import types
from collections.abc import Callable
from typing import Any, NamedTuple

from nanochat.tools.sandbox import plain_data

_TESTS = "tests.py"
_MAX_MESSAGE_CHARS = 2000
_TOKEN_BYTES = 8


REPORT = "REPORT"
"""The name of a variable. The tests may assign a text to it, which the caller of the sandbox receives."""


class Request(NamedTuple):
    """What the judge is asked. The program's process never holds it."""

    setup: str
    """Code to run before the tests, such as functions that they need."""
    tests: str
    """Code that calls `functions` and raises an exception unless all is right."""
    functions: tuple[str, ...]
    """Names of the program's functions."""


class Verdict(NamedTuple):
    """Whether the tests ran to their end, and else why not."""

    passed: bool
    message: str = ""
    report: str = ""
    """The text that the tests assigned to `REPORT`."""


class _ProgramEndedError(Exception):
    """The program's process has ended, or does not answer in the agreed form."""


class _ProgramError(Exception):
    """The program raised an exception of a type that is not built in."""


def judge(request: Request, calls: int, replies: int) -> Verdict:
    """Return the verdict on the program that reads from `calls` and writes to `replies`."""
    remote = _Remote(calls, replies)
    namespace: dict[str, object] = {"__name__": "tests"}
    linecache.cache[_TESTS] = (len(request.tests), None, request.tests.splitlines(keepends=True), _TESTS)
    try:
        remote.expect(request.functions)
        exec(compile(request.setup, "setup.py", "exec", dont_inherit=True), namespace)
        namespace.update({name: remote.function(name) for name in request.functions})
        exec(compile(request.tests, _TESTS, "exec", dont_inherit=True), namespace)
    except BaseException as error:  # noqa: BLE001 -- whatever ends the tests early has failed them
        return Verdict(False, _describe(error))
    if remote.failure is not None:
        return Verdict(False, _describe(remote.failure))
    report = namespace.get(REPORT)
    return Verdict(True, report=report if type(report) is str else "")


class _Remote:
    """The program, as the tests see it. `failure` is set once it has broken off, even if the tests catch that."""

    def __init__(self, calls: int, replies: int) -> None:
        self.failure: _ProgramEndedError | None = None
        self._calls = calls
        self._replies = replies

    def expect(self, names: tuple[str, ...]) -> None:
        """Wait until the program has run, and raise an exception unless it defines all the functions."""
        match self._receive():
            case ["defined", [*defined]]:
                for name in names:
                    if name not in defined:
                        raise NameError(f"the program does not define the function {name}")
            case ["raised", str(kind), str(text)]:
                raise _exception(kind, text)
            case _:
                raise self._broken("the program's first reply has another form")

    def function(self, name: str) -> Callable[..., Any]:
        """Return a function that calls the program's function of that name."""

        def call(*positional: Any, **keywords: Any) -> Any:
            token = os.urandom(_TOKEN_BYTES).hex()  # no reply that was written before the call holds it
            frame = plain_data.dump([name, list(positional), keywords, token])
            try:
                plain_data.write_frame(self._calls, frame)
            except OSError as error:
                raise self._broken("the program has ended") from error
            match self._receive():
                case ["returned", result, list(after), dict(named), answered] if answered == token:
                    plain_data.update((list(positional), keywords), (after, named))
                    return result
                case ["raised", [str(kind), str(text)], list(after), dict(named), answered] if answered == token:
                    plain_data.update((list(positional), keywords), (after, named))
                    raise _exception(kind, text)
                case _:
                    raise self._broken("the program's reply has another form, or answers another call")

        call.__name__ = call.__qualname__ = name
        return call

    def _receive(self) -> Any:
        try:
            return plain_data.load(plain_data.read_frame(self._replies))
        except EOFError as error:
            raise self._broken("the program ended before it returned") from error
        except (ValueError, MemoryError) as error:
            raise self._broken(f"the program's reply cannot be read: {error}") from error

    def _broken(self, message: str) -> _ProgramEndedError:
        self.failure = _ProgramEndedError(message)
        return self.failure


def _exception(kind: str, text: str) -> Exception:
    """Return an exception of the built-in type of that name, or one that mentions the name."""
    builtin = getattr(builtins, kind, None)
    if isinstance(builtin, type) and issubclass(builtin, Exception):
        with contextlib.suppress(TypeError):  # such as UnicodeDecodeError, which needs more than a text
            return builtin(text)
    return _ProgramError(f"{kind}: {text}")


def _describe(error: BaseException) -> str:
    """Return type and text of the exception, and the line of the tests where it was raised."""
    line = _line_of_tests(error.__traceback__)
    name = "" if isinstance(error, _ProgramEndedError | _ProgramError) else f"{type(error).__name__}: "
    return f"{name}{error}".removesuffix(": ")[:_MAX_MESSAGE_CHARS] + (f"\n{line}" if line else "")


def _line_of_tests(trace: types.TracebackType | None) -> str:
    line = ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _TESTS:
            line = linecache.getline(_TESTS, trace.tb_lineno).strip()[:_MAX_MESSAGE_CHARS]
        trace = trace.tb_next
    return line
