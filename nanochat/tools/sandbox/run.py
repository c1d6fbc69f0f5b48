"""Runs a program that a model wrote, calls its functions in tests, and says whether the tests pass.

Two processes take part. One runs the program. The other one runs the tests, which decide: when they call one of the
program's functions, the arguments, the result and later changes of the arguments cross between the two as plain data
(`plain_data`). The program's process holds neither the tests nor anything else that decides, so it can only return
values.

Both processes have an empty environment, and the standard library but no installed packages. Their time, memory, files,
threads and output are limited. They can read Python's own files and no others, and the program can write to a folder
that is deleted afterwards. They cannot use the network, and cannot start, signal or look into processes. The
`isolation` says what enforces that:

- `namespaces` (Linux): namespaces of their own, a file system with Python's files alone, and a filter of system calls.
- `landlock` (Linux where namespaces are not permitted): Landlock's rules for files, and the same filter. The program
  still sees names, sizes and times of other files.
- `seatbelt` (macOS): a profile of Seatbelt, the mechanism of `sandbox-exec`.
- `none`: where nothing else works and the user accepts it. The limits hold, and Linux filters system calls if it can.
  But a program can do to files what the user can do. So it can also change the verdict.

Root's programs run as the user nobody.

Not covered: faults of the kernel, and how much a program reads of Python's own files. Tests compare as Python does, so
3.0 and True pass for 3 and 1. They see copies: whether a result is the same object as an argument, or of a class of the
program's own, is not visible to them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache

from nanochat.errors import PreflightError, StageError
from nanochat.storage.temporary_folders import delete_dead_folders, temporary_folder
from nanochat.tools.sandbox.judge import Request
from nanochat.tools.sandbox.settings import Isolation, Limits, Settings
from nanochat.tools.sandbox.watch import Outcome, follow_sandbox

_CANDIDATES: dict[str, tuple[Isolation, ...]] = {"linux": ("namespaces", "landlock"), "darwin": ("seatbelt",)}


def run_tests(
    program: str,
    tests: str,
    *,
    functions: Sequence[str],
    setup: str = "",
    limits: Limits | None = None,
    isolation: Isolation | None = None,
) -> Outcome:
    """Run `program`, then `tests`, and return whether the tests reached their end without an exception.

    Args:
        program: source of the program to judge.
        tests: trusted code, in which the names in `functions` call the program's functions.
        functions: a program fails if it does not define all of them.
        setup: trusted code that runs before the tests, for what else they need. Functions of the program replace its.
        isolation: default: the best that works here.

    Raises:
        PreflightError: no isolation works here, and none was given.
        StageError: the sandbox could not be set up.
    """
    limits = limits or Limits()
    isolation = isolation or find_isolation()
    with temporary_folder("sandbox") as folder:
        settings = Settings(isolation, str(folder), limits)
        request = json.dumps(Request(setup, tests, tuple(functions)))
        return follow_sandbox(settings, program.encode(errors="surrogatepass"), request.encode())


def find_isolation(*, accept_none: bool = False) -> Isolation:
    """Return the best isolation that works on this machine for this user.

    If none works, returns `none` if that is accepted, and else raises a PreflightError that gives the reasons.
    """
    isolation, reasons = _try_isolations()
    if isolation is None and not accept_none:
        raise PreflightError(f"this machine cannot isolate programs that a model writes ({reasons})")
    return isolation or "none"


@cache
def _try_isolations() -> tuple[Isolation | None, str]:
    """Return the first isolation that works, or None, and why those before it do not. Tried once per process."""
    delete_dead_folders()
    reasons = []
    for isolation in _CANDIDATES.get(sys.platform, ()):
        try:
            outcome = run_tests("def f(): return 1", "assert f() == 1", functions=["f"], isolation=isolation)
        except StageError as error:
            reasons.append(str(error))
            continue
        if outcome.passed:
            return isolation, "; ".join(reasons)
        reasons.append(f"{isolation}: {outcome.message}")
    return None, "; ".join(reasons) or f"no way is known for {sys.platform}"
