"""Press Ctrl-C at each stage in a real terminal; check the last line, the exit code, MLflow, and that the run resumes.

`python tests/torture/terminal.py`. The command runs on a pseudo-terminal of its own and is sent the byte of Ctrl-C, so
that the terminal itself signals it, as for a user.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import signal
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass
from pathlib import Path

from compare import differences
from process import STAGES, Attempt, Bench, conclude, run_undisturbed

from nanochat import runtime
from nanochat.runner.store.run_catalog import find_run
from nanochat.tracking.link import read_link
from nanochat.tracking.mlflow_store import open_store

CTRL_C, STOPPED = b"\x03", 75
_WAIT_SECONDS = 120


@dataclass
class Terminal:
    """A command on a terminal of its own."""

    attempt: Attempt
    master: int
    shown: bytes = b""

    def read(self, seconds: float) -> None:
        """Take in what is shown for a while."""
        deadline = time.monotonic() + seconds
        os.set_blocking(self.master, False)
        while time.monotonic() < deadline:
            try:
                self.shown += os.read(self.master, 1 << 16)
            except BlockingIOError:
                time.sleep(0.02)
            except OSError:  # the other side is closed
                return

    def end(self) -> tuple[int, float]:
        """Wait for the command; return its exit code and the seconds that it took from now."""
        began = time.monotonic()
        while self.attempt.process.poll() is None:
            assert time.monotonic() - began < _WAIT_SECONDS, "the command does not end"
            self.read(0.1)
        self.read(0.2)
        return self.attempt.process.wait(), time.monotonic() - began

    def last_line(self) -> str:
        """Return the last line shown, without the terminal's control sequences."""
        lines = [line for line in self.shown.decode(errors="replace").replace("\r", "\n").split("\n") if line.strip()]
        return lines[-1].strip()


def open_terminal(bench: Bench) -> Terminal:
    """Start the command on a new terminal that controls it."""
    master, slave = pty.openpty()
    bench.folder.mkdir(parents=True, exist_ok=True)

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, if a script started this in the background

    process = subprocess.Popen(
        bench.command,
        cwd=bench.folder,
        env={**os.environ, "NANOCHAT_BASE_DIR": str(bench.base), "TERM": "xterm", "COLUMNS": "200"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=take_terminal,
    )
    os.close(slave)
    return Terminal(Attempt(process, bench), master)


def stop_at(bench: Bench, stage: str, *, presses: int) -> list[str]:
    """Press Ctrl-C once or twice while a stage works; return what is not as it should be."""
    terminal = open_terminal(bench)
    found = terminal.attempt.wait_for_stage(stage)
    assert found is not None and found[0] == stage, f"{stage} was not seen at work"
    progress = bench.stage(stage) / "progress.json"
    while not progress.exists() and terminal.attempt.process.poll() is None:
        terminal.read(0.02)
    terminal.read(0.05)  # the evaluations of the toy take half a second
    os.write(terminal.master, CTRL_C)
    if presses == 2:
        terminal.read(0.4)  # longer than the time in which two signals count as one
        os.write(terminal.master, CTRL_C)
    code, seconds = terminal.end()
    line = terminal.last_line()
    print(f"{stage}, pressed {presses}x: exit {code} after {seconds:.1f} s: {line}", flush=True)
    wrong = []
    if code != STOPPED:
        wrong.append(f"{stage}: exit {code}, not {STOPPED}")
    if "; continue with: nanochat-run " not in line or not any(word in line for word in ("saved", "kept", "nothing")):
        wrong.append(f"{stage}: the last line does not say what was saved and how to resume: {line!r}")
    return wrong + _check_status(bench, stage)


def _check_status(bench: Bench, stage: str) -> list[str]:
    run = find_run("toy", bench.base)
    wrong = []
    if (run.state.status, run.state.entry(stage).status) != ("interrupted", "interrupted"):
        wrong.append(f"{stage}: run.json says {run.state.status}, {run.state.entry(stage).status}")
    store = open_store(f"sqlite:///{bench.folder.resolve() / 'mlflow.db'}", "nanochat")
    for name, folder in (("run", run.folder.path), (stage, bench.stage(stage))):
        link = read_link(folder / "tracking.json")
        status = store.client.get_run(link.run_id).info.status if link else "not there"
        if status != "KILLED":
            wrong.append(f"{stage}: MLflow shows the {name} as {status}, not KILLED")
    return wrong


def main() -> int:
    """Stop each stage once, then each once more at once; the run must end as an undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    runtime.prepare(device="cpu")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="nanochat-terminal-"))
    smooth, rough = run_undisturbed(folder / "smooth"), Bench(folder / "rough")
    wrong = []
    for stage in STAGES:
        for presses in (1, 2):
            wrong += stop_at(rough, stage, presses=presses)
    code = rough.run()
    wrong += [f"the last attempt ended with {code}"] if code != 0 else differences(smooth, rough)
    stopped = f"Ctrl-C once and twice at each of {len(STAGES)} stages: exit 75, KILLED"
    return conclude(wrong, folder, f"{stopped}, and the run ended as undisturbed")


if __name__ == "__main__":
    sys.exit(main())
