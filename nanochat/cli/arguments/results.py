"""The commands that work on the runs of this machine: ls, report, compare, watch and gc."""

from __future__ import annotations

from pathlib import Path

from nanochat.cli.arguments.parser import Parser, Verb, add_json, add_run


def _report(parser: Parser) -> None:
    add_run(parser)
    add_json(parser)


def _best(parser: Parser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", help="name of a sweep, or NAME/TIME")


def _compare(parser: Parser) -> None:
    add_run(parser, nargs="+")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document (see schemas/json_output.md)")
    form.add_argument("--html", metavar="FILE", type=Path, help="write a page with tables and curves to this file")


def _watch(parser: Parser) -> None:
    add_run(parser)
    parser.add_argument("--once", action="store_true", help="show how far the run is now, and stop")


def _gc(parser: Parser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="list what would be deleted, and delete nothing")


RESULTS = (
    Verb("ls", "list the runs on this machine", "result_commands.ls", ("ls", "ls --json"), add_json),
    Verb("report", "show the results of a run or a sweep", "result_commands.report", ("report quickstart",), _report),
    Verb(
        "best",
        "print the recipe of the best setting of a sweep, as a file that runs on its own",
        "sweep_commands.best",
        ("best scaling_small > best.yaml",),
        _best,
    ),
    Verb(
        "compare",
        "show the results of several runs, and how their recipes differ",
        "result_commands.compare",
        ("compare quickstart quickstart_current", "compare quickstart d4 --html page.html"),
        _compare,
    ),
    Verb(
        "watch",
        "follow a run that another command works on: a live line and a curve",
        "watch_commands.watch",
        ("watch quickstart", "watch quickstart --once"),
        _watch,
    ),
    Verb(
        "gc",
        "delete results and data that no run uses; to remove a run, delete its folder in `runs/` first",
        "result_commands.gc",
        ("gc --dry-run",),
        _gc,
    ),
)
