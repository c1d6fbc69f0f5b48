"""The errors that nanochat raises, each with the exit code of the command.

Mistakes of the user raise one of these and end the command without a traceback. Broken invariants are asserts.
"""

from __future__ import annotations

from collections.abc import Iterable

OK = 0
BUG = 1
OUT_OF_MEMORY = 40
"""Exit code of a stage's child process. The parent adds the estimated memory and ends the command with 4."""


class NanochatError(Exception):
    """Base class. The message is for the user: what is wrong, where, and what to do."""

    exit_code = BUG


class RecipeError(NanochatError):
    """A recipe, option or argument is wrong. The message lists every problem with its position."""

    exit_code = 2


class PreflightError(NanochatError):
    """A source, disk space, memory or a device is missing. Raised before any work starts."""

    exit_code = 3


class StageError(NanochatError):
    """A stage failed: diverged, ran out of memory, read broken data, or its process died."""

    exit_code = 4


class ExpectationError(NanochatError):
    """The run has finished, but a result does not meet the recipe's `expect`."""

    exit_code = 5


class LockError(NanochatError):
    """Another run is computing the same stage."""

    exit_code = 6


class InterruptedRun(NanochatError):  # noqa: N818 -- a signal is not an error
    """A signal stopped the run after it had saved its state. The same command continues it."""

    exit_code = 75


_WORST_FIRST = (NanochatError, StageError, RecipeError, PreflightError, LockError, ExpectationError, InterruptedRun)
"""Bugs of nanochat come first. Missed expectations come late, because the results are there."""


def worst(exit_codes: Iterable[int]) -> type[NanochatError] | None:
    """Return the class of the worst of these exit codes, or None if there is no error among them."""
    codes = set(exit_codes)
    return next((kind for kind in _WORST_FIRST if kind.exit_code in codes), None)
