"""The command under torture: one base folder, one recipe, started again and again as a user would."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

TOY = Path(__file__).with_name("toy.yaml")
STAGES = ("tokenizer", "pretrain", "base_eval", "sft", "chat_eval")
_POLL_SECONDS = 0.02
SMALL = (
    "sources.stdlib={path: docs.json, max_document_chars: 400}",
    "tokenizer.vocab_size=420",
    "pretrain.horizon.steps=12",
    "sft.horizon.steps=8",
    "sft.data.spelling.max_examples=200",
    "sft.data.counting.max_examples=50",
    *(f"base_eval.suites.{name}.tokens=1024" for name in ("bpb", "bpb_again", "bpb_third")),
    "chat_eval.suites.spelling.max_problems=4",
    "chat_eval.suites.counting.max_problems=4",
    "chat_eval.suites.spelling_again.max_problems=4",
    "run.data.token_cache=true",
    "run.monitor={validate_every_steps: 6, validate_tokens: 1024, sample_every_steps: 4, prompts: [import]}",
    "tracking.kind=none",
)
"""Make the toy recipe so small that it can be run hundreds of times, and let it read a file that is converted first."""


class Process(Protocol):
    """A started command: a child of this process, or of a shell."""

    pid: int

    def poll(self) -> int | None:
        """Return None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends and return its exit code."""


@dataclass
class Attempt:
    """One start of the command, running."""

    process: Process
    bench: Bench

    def child(self) -> tuple[str, int] | None:
        """Return the stage and pid of the child at work, as the stage's lock names them; None between stages."""
        for lock in (self.bench.base / "stages").glob("*/*/lock"):
            try:
                owner = json.loads(lock.read_text())
            except (OSError, ValueError):
                continue
            if owner["pid"] == self.process.pid and owner["child_pid"] is not None:
                return lock.parent.parent.name, owner["child_pid"]
        return None

    def wait_for_stage(self, first: str) -> tuple[str, int] | None:
        """Wait until a child of `first` or a later stage is at work and return it; None where the command ended."""
        wanted = STAGES[STAGES.index(first) :]
        while self.process.poll() is None:
            found = self.child()
            if found is not None and found[0] in wanted:
                return found
            time.sleep(_POLL_SECONDS)
        return None

    def kill(self, *pids: int) -> None:
        """Send SIGKILL to processes that this attempt started; those that are gone already do not count."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_between(self, after: str) -> bool:
        """Wait until the child of a stage is done and no other is at work; return False where the command ended."""
        if self.wait_for_stage(after) is None:
            return False
        while self.process.poll() is None:
            if self.child() is None:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def end(self, timeout_seconds: float = 600) -> int:
        """Wait for the command and return its exit code."""
        return self.process.wait(timeout_seconds)


def wait_until_gone(pid: int, timeout_seconds: float = 20) -> bool:
    """Wait for a process that is no child of ours; return whether it ended in time."""
    deadline = time.monotonic() + timeout_seconds
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
    return True


@dataclass
class Bench:
    """A folder of its own for a tortured run: base folder, database, output of every attempt."""

    folder: Path
    recipe: Path = TOY
    overrides: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def output(self) -> Path:
        """Beside the folder, which may be a full disk."""
        return self.folder.with_suffix(".txt")

    @property
    def command(self) -> list[str]:
        given = [word for override in self.overrides for word in ("--set", override)]
        return [sys.executable, "-m", "nanochat.cli.run", str(self.recipe), *given, *self.options]

    @property
    def variables(self) -> dict[str, str]:
        """What the command finds in its environment besides what is there."""
        return {"NANOCHAT_BASE_DIR": str(self.base), **self.environment}

    def start(self, stdout: int | None = None) -> Attempt:
        """Start the command. Its output goes to `output`, or what is not an error to a descriptor."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env={**os.environ, **self.variables},
                stdin=subprocess.DEVNULL,
                stdout=output if stdout is None else stdout,
                stderr=output,
                start_new_session=True,
            )
        return Attempt(process, self)

    def run(self) -> int:
        """Run the command to its end and return the exit code."""
        return self.start().end()

    def stage(self, name: str) -> Path:
        """Return the folder of a stage, which must be the only one."""
        (folder,) = (self.base / "stages" / name).glob("[!.]*")
        return folder

    def said(self) -> str:
        """Return what all attempts printed."""
        return self.output.read_text(errors="replace")


def conclude(wrong: list[str], folder: Path, success: str) -> int:
    """Print the deviations and keep the folder, or print the success and delete it; return the exit code."""
    if wrong:
        print("\n".join(wrong), f"kept: {folder}", sep="\n")
        return 1
    print(success)
    shutil.rmtree(folder)
    return 0


def run_undisturbed(folder: Path) -> Bench:
    """Return a bench whose run ended well: what a disturbed run is compared with."""
    bench = Bench(folder)
    if bench.run() != 0:
        raise SystemExit(f"the undisturbed run failed:\n{bench.said()}")
    return bench


def small_bench(folder: Path, *, seed: int = 3) -> Bench:
    """Return a bench of the small recipe with its data, which differ by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [path.read_text(errors="replace")[seed:] for path in sorted(Path(os.__file__).parent.glob("*.py"))[:60]]
    (folder / "docs.json").write_text(json.dumps([{"text": text} for text in texts]))
    return Bench(folder, overrides=(*SMALL, f"seed={seed}"))
