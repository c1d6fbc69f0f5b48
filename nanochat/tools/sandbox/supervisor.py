"""The first process of a sandbox: forks the program's process and the judge's, and ends with all of them.

`watch` starts it without an environment and without installed packages. It forks the program before it reads the tests,
so that the program's memory has never held them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from nanochat.tools.sandbox import confine, namespaces
from nanochat.tools.sandbox.judge import Request, judge
from nanochat.tools.sandbox.kernel_calls import PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, prctl
from nanochat.tools.sandbox.plain_data import read_frame
from nanochat.tools.sandbox.program import serve
from nanochat.tools.sandbox.settings import Settings


class _Pipe(NamedTuple):
    read: int
    write: int


def main() -> None:
    """Run the program in the first frame of standard input under the tests in the second one.

    Each line on the pipe for reports is a JSON object: `ready` from each of the two processes, then `verdict`; or
    `error` if the sandbox could not be set up.
    """
    settings, report = Settings.load(sys.argv[1]), int(sys.argv[2])
    sys.path.pop()  # programs import the standard library only
    sys.dont_write_bytecode = True
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
    threads_before = confine.prepare(settings)
    groups: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: _kill(groups))
    calls, replies = _Pipe(*os.pipe()), _Pipe(*os.pipe())

    def run_program() -> None:
        _isolate(settings, is_program=True, threads_before=threads_before, unused=(calls.write, replies.read))
        _report(report, "ready", True)
        os.close(report)
        serve(source, calls.read, replies.write)

    def run_judge() -> None:
        _isolate(settings, is_program=False, threads_before=threads_before, unused=(calls.read, replies.write))
        _report(report, "ready", True)
        _report(report, "verdict", judge(request, calls.write, replies.read))

    source = read_frame(0).decode(errors="surrogatepass")
    groups.append(_fork(run_program, report))
    request = Request(*json.loads(read_frame(0)))
    groups.append(_fork(run_judge, report))
    for descriptor in (*calls, *replies, report):
        os.close(descriptor)
    _wait(groups)


def _fork(run: Callable[[], None], report: int) -> int:
    """Return the id of a new process that calls `run` and ends. It is also the id of its process group."""
    if process := os.fork():
        with contextlib.suppress(OSError):  # the child does the same; one of the two is first
            os.setpgid(process, process)
        return process
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 -- nothing may return into the supervisor's code
        _report(report, "error", f"{type(error).__name__}: {error}")
    finally:
        os._exit(1)


def _isolate(settings: Settings, *, is_program: bool, threads_before: int, unused: tuple[int, ...]) -> None:
    """Isolate this process, or in namespaces a new one, and close what it does not need."""
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0,) if is_program else (0, 1, 2):
        os.dup2(nowhere, descriptor)
    for descriptor in (nowhere, *unused):
        os.close(descriptor)
    if settings.isolation == "namespaces":
        namespaces.unshare()
        if os.fork():
            os.wait()
            os._exit(0)
    confine.confine(settings, is_writable=is_program, threads_before=threads_before)


def _report(report: int, key: str, value: object) -> None:
    os.write(report, json.dumps({key: value}).encode() + b"\n")


def _wait(groups: list[int]) -> NoReturn:
    """Wait for the judge, the last of `groups`, then end both groups and what they have left."""
    while os.wait()[0] != groups[-1]:
        pass
    _kill(groups)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    os._exit(0)


def _kill(groups: list[int]) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
