"""`nanochat-run`: from arguments to an exit code. The only place that catches every exception."""

from __future__ import annotations

import argparse
import errno
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from nanochat.cli.arguments import parse
from nanochat.errors import BUG, OK, InterruptedRun, NanochatError, StageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see `errors`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(parse(given), given)
    except NanochatError as error:
        prefix = "" if isinstance(error, InterruptedRun) or str(error).startswith("error[") else "error: "
        print(f"{prefix}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return InterruptedRun.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output left, as `head` does
            sys.stderr.close()
            return OK
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"error: the disk is full ({error}); what was saved before is whole: make room", file=sys.stderr)
            print("(`nanochat-run gc` helps), then run the same command", file=sys.stderr)
            return StageError.exit_code
        return _report_bug(error)
    except Exception as error:  # noqa: BLE001 -- the command line's outermost frame: a bug of ours becomes a report
        return _report_bug(error)
    return OK


def _dispatch(options: argparse.Namespace, given: Sequence[str]) -> None:
    """Call what the verb stands for; imports follow the verb, so that light verbs stay light."""
    match options.verb:
        case "run":
            from nanochat.cli.recipes import run

            run(options, given)
        case "plan" | "check" | "show" | "diff" | "schema":
            from nanochat.cli import recipes

            getattr(recipes, options.verb)(options)
        case "ls" | "report" | "compare" | "gc":
            from nanochat.cli import runs

            {"ls": runs.list_all, "report": runs.report, "compare": runs.compare, "gc": runs.gc}[options.verb](options)
        case "import" | "export":
            from nanochat.cli import models

            {"import": models.import_model, "export": models.export_model}[options.verb](options)
        case "ui" | "verify":
            from nanochat.cli import programs as tools

            {"ui": tools.ui, "verify": tools.verify}[options.verb](options)
        case _:
            raise AssertionError(f"no such verb: {options.verb}")


def _report_bug(error: Exception) -> int:
    with tempfile.NamedTemporaryFile(
        "w", prefix="nanochat-traceback-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    print(
        f"error: a bug in nanochat: {type(error).__name__}: {error}\nthe traceback is in {Path(file.name)}; "
        f"please report it with the recipe",
        file=sys.stderr,
    )
    return BUG


if __name__ == "__main__":
    sys.exit(main())
