"""Our errors, each with the exit code that ends the command.

A user's mistake raises one of these and ends without a traceback; a broken invariant is an `assert`.
"""

from __future__ import annotations

OK = 0
BUG = 1
OUT_OF_MEMORY = 40
"""Of a stage's process to its parent alone, which tells it with the plan's estimate: the command ends with 4."""


class NanochatError(Exception):
    """An error whose message is for the user: what was wrong, where, and what to do about it."""

    exit_code = BUG


class RecipeError(NanochatError):
    """A recipe, option or argument is wrong; the message holds every located finding."""

    exit_code = 2


class PreflightError(NanochatError):
    """Something needed is missing before any work starts: a source, disk, memory, a device."""

    exit_code = 3


class StageError(NanochatError):
    """A stage failed: diverged, ran out of memory, read broken data, or its process died."""

    exit_code = 4


class ExpectationError(NanochatError):
    """The run is done, but an expectation of the recipe was not met."""

    exit_code = 5


class LockError(NanochatError):
    """Another live run holds the lock of a stage."""

    exit_code = 6


class InterruptedRun(NanochatError):  # noqa: N818 -- a signal is not an error
    """Stopped by a signal after saving; the same command continues."""

    exit_code = 75
