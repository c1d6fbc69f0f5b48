"""Everyday trouble of a run in every stage: what the command returns, what is saved, and that it ends in the same bits.

`python tests/torture/matrix.py` (Linux, 10 to 20 minutes): closed pipes, full disks, poor terminals, closed windows,
`nohup`, Ctrl-C, Ctrl-Z, SIGTERM and `kill -9`, each in the five stages and between two. Every cell has a base folder in
which the earlier stages are finished. The same command must then end with the files and the MLflow history of an
undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from compare import differences
from process import STAGES, Attempt, Bench, conclude, run_undisturbed
from shell import CTRL_C, CTRL_Z, Job, Shell, family, is_suspended, newest, open_shell

from nanochat import runtime
from nanochat.storage.layout import StageFolder, list_checkpoints

BETWEEN = "between stages"
PLACES = (*STAGES, BETWEEN)
_BETWEEN_STAGES = ("base_eval", "sft")
NOTHING = "earlier stages"
_TRIES = 4
_SUSPENDED_SECONDS = 2.0

Reach = Callable[[Attempt], None]
"""Waits until a command is at the place where it is to be disturbed. If it has passed it, ends it: MissedError."""


class MissedError(Exception):
    """A command has passed the place."""


def cut_pipe(bench: Bench, reach: Reach) -> int:
    """The reader of the output goes away, as `head` and `less` do."""
    reader, writer = os.pipe()
    attempt = bench.start(writer)
    os.close(writer)
    try:
        reach(attempt)
    finally:
        os.close(reader)
    return attempt.end()


def fill_output(bench: Bench, reach: Reach) -> int:
    """The disk under the log file is full from the start."""
    full = os.open("/dev/full", os.O_WRONLY)
    attempt = bench.start(full)
    os.close(full)
    reach(attempt)
    return attempt.end()


def be_ascii(bench: Bench, reach: Reach) -> int:
    """The terminal knows no character beyond ASCII."""
    with _shell(bench) as shell:
        attempt = shell.run(bench, environment="LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING=ascii")
        reach(attempt)
        return shell.exit_code(_job(attempt))


def close_window(bench: Bench, reach: Reach) -> int:
    """The window of the terminal is closed: the system and the shell send SIGHUP."""
    with _shell(bench) as shell:
        attempt = shell.run(bench)
        reach(attempt)
        shell.close_window()
        return attempt.end()


def run_under_nohup(bench: Bench, reach: Reach) -> int:
    """The window is closed, but `nohup` started the command."""
    with _shell(bench) as shell:
        attempt = shell.run(bench, prefix="nohup")
        reach(attempt)
        shell.close_window()
        return attempt.end()


def press_ctrl_c(bench: Bench, reach: Reach) -> int:
    """The user presses Ctrl-C."""
    with _shell(bench) as shell:
        attempt = shell.run(bench)
        reach(attempt)
        shell.type(CTRL_C)
        return shell.exit_code(_job(attempt))


def press_ctrl_z(bench: Bench, reach: Reach) -> int:
    """The user presses Ctrl-Z, and types `fg` some time later. Meanwhile nothing runs and nothing is written."""
    with _shell(bench) as shell:
        attempt = shell.run(bench)
        reach(attempt)
        shell.type(CTRL_Z)
        shell.wait_for(rb"Stopped")
        processes = family(attempt.process.pid)
        assert is_suspended(processes), f"not all of {processes} are suspended"
        before = newest(bench.folder)
        time.sleep(_SUSPENDED_SECONDS)
        assert is_suspended(processes) and newest(bench.folder) == before, "the run continued while it was suspended"
        shell.type(b"fg\n")
        return shell.exit_code(_job(attempt))


def terminate(bench: Bench, reach: Reach) -> int:
    """Somebody sends SIGTERM, as a shutdown does."""
    return _send(signal.SIGTERM, bench, reach)


def kill(bench: Bench, reach: Reach) -> int:
    """Somebody sends SIGKILL to the parent; the process of the stage notices."""
    return _send(signal.SIGKILL, bench, reach)


@dataclass(frozen=True)
class Event:
    """Something that happens to a run, and the exit code that must follow."""

    name: str
    strike: Callable[[Bench, Reach], int]
    expected: int


EVENTS = (
    Event("pipe closed", cut_pipe, 0),
    Event("output full", fill_output, 0),
    Event("ASCII", be_ascii, 0),
    Event("window closed", close_window, 75),
    Event("nohup", run_under_nohup, 0),
    Event("Ctrl-C", press_ctrl_c, 75),
    Event("Ctrl-Z, fg", press_ctrl_z, 0),
    Event("SIGTERM", terminate, 75),
    Event("kill -9", kill, -signal.SIGKILL),
)


@dataclass(frozen=True)
class Cell:
    """The outcome of an event at a place. Without problems, the same command ended as if nothing had happened."""

    code: int | None
    saved: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.code}; {self.saved}; {'; '.join(self.problems) or 'same bits'}"


def try_cell(smooth: Bench, folder: Path, event: Event, place: str) -> Cell:
    """Let an event happen at a place, run the same command again, and compare. A command that was too fast is retried.

    The folder of a cell with problems is kept.
    """
    stages: Sequence[str] = _BETWEEN_STAGES if place == BETWEEN else (place,)
    name = f"{event.name}-{place}".replace(" ", "_").replace(",", "")
    code: int | None = None
    for number in range(_TRIES):
        bench = Bench(folder / f"{name}-{number}", options=("--until", stages[-1]))
        _prepare(smooth, bench, without=STAGES[STAGES.index(stages[0]) :])
        with contextlib.suppress(MissedError):
            code = event.strike(bench, partial(_reach, place=place, is_late=number < _TRIES // 2))
            if code == event.expected or code != 0:
                break
    saved = _saved(bench, stages[-1])
    problems = [] if code == event.expected else [f"exit {code}, not {event.expected}"]
    again = bench.run()
    problems += [f"the same command ended with {again}"] if again else differences(smooth, bench, stages)
    if any(word in bench.said() for word in ("Traceback", "bug in nanochat")):
        problems.append("a traceback or a bug was reported")
    if not problems:
        shutil.rmtree(bench.folder)
    return Cell(code, saved, tuple(problems))


def _prepare(smooth: Bench, bench: Bench, *, without: Sequence[str]) -> None:
    """Fill a base folder with the finished stages before those in `without`, and add an empty MLflow database."""
    left_out = shutil.ignore_patterns("runs", "tracking.json", ".deleting-*")
    shutil.copytree(smooth.base, bench.base, ignore=left_out)
    for stage in without:
        shutil.rmtree(bench.base / "stages" / stage)
    shutil.copy(smooth.folder.with_name("empty.db"), bench.folder / "mlflow.db")


def _reach(attempt: Attempt, *, place: str, is_late: bool) -> None:
    """Wait until a stage is at work, or until the child of the stage before has ended.

    If `is_late`, there is something to lose: a checkpoint, or the result of a suite.
    """
    if place == BETWEEN:
        if attempt.wait_between(_BETWEEN_STAGES[0]):
            return
    elif attempt.wait_for_stage(place) is not None:
        folder = StageFolder(attempt.bench.stage(place))
        is_saving = is_late and place != "tokenizer"
        while attempt.process.poll() is None and not folder.record.exists():
            if _saved(attempt.bench, place) != NOTHING if is_saving else folder.progress.exists():
                return
            time.sleep(0.01)
    attempt.kill(attempt.process.pid)
    raise MissedError


def _saved(bench: Bench, stage: str) -> str:
    """Return what is on disk of a stage after the event."""
    for folder in map(StageFolder, (bench.base / "stages" / stage).glob("[!.]*")):
        if folder.record.exists():
            return "finished"
        if steps := list_checkpoints(folder.checkpoints):
            return f"step {max(steps)}"
        if suites := list(folder.suites.glob("[!.]*.json")):
            return f"{len(suites)} of 3 suites"
    return NOTHING


def _send(number: signal.Signals, bench: Bench, reach: Reach) -> int:
    attempt = bench.start()
    reach(attempt)
    os.kill(attempt.process.pid, number)
    return attempt.end()


def _job(attempt: Attempt) -> Job:
    assert isinstance(attempt.process, Job)
    return attempt.process


@contextmanager
def _shell(bench: Bench) -> Iterator[Shell]:
    shell = open_shell(bench)
    try:
        yield shell
    finally:
        shell.close()
        with bench.output.open("ab") as output:
            output.write(shell.shown)


def main() -> int:
    """Try every event at every place and print the matrix; return 1 if a cell has a problem."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--event", choices=[event.name for event in EVENTS], help="try only this event")
    parser.add_argument("--place", choices=PLACES, help="try only this place")
    parser.add_argument("--jobs", type=int, default=2, help="cells at the same time (default: 2)")
    options = parser.parse_args()
    runtime.prepare(device="cpu")
    folder = Path(tempfile.mkdtemp(prefix="nanochat-matrix-"))
    smooth = run_undisturbed(folder / "smooth")
    _create_database(folder / "empty.db")
    events = [event for event in EVENTS if options.event in (None, event.name)]
    places = [place for place in PLACES if options.place in (None, place)]
    with ThreadPoolExecutor(options.jobs) as pool:
        pairs = list(itertools.product(events, places))
        cells = list(pool.map(lambda pair: _announce(smooth, folder, *pair), pairs))
    found = dict(zip(pairs, cells, strict=True))
    print(f"\n| | {' | '.join(places)} |\n|{'---|' * (len(places) + 1)}")
    for event in events:
        print(f"| {event.name} | {' | '.join(str(found[event, place]) for place in places)} |")
    wrong = [f"{event.name}, {place}: {line}" for (event, place), cell in found.items() for line in cell.problems]
    return conclude(wrong, folder, f"\n{len(cells)} cells: every run ended in the bits of the undisturbed one")


def _announce(smooth: Bench, folder: Path, event: Event, place: str) -> Cell:
    try:
        cell = try_cell(smooth, folder, event, place)
    except AssertionError as error:
        cell = Cell(None, "", (str(error),))
    print(f"{event.name}, {place}: {cell}", flush=True)
    return cell


def _create_database(path: Path) -> None:
    from nanochat.tracking.mlflow_store import open_store

    open_store(f"sqlite:///{path}", "unused")


if __name__ == "__main__":
    sys.exit(main())
