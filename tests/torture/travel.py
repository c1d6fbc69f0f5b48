"""Runs in unusual places: twice at once, under other host names, in a folder that nobody or somebody else may write.

`python tests/torture/travel.py` (Linux, as root or where user namespaces are allowed; minutes). Host names and the
read-only mount are those of namespaces of their own. Another user is tried as root, if Python may be run by everybody.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import differences
from process import TOY, Bench, conclude, run_undisturbed

from nanochat import runtime
from nanochat.runner.store.run_catalog import list_runs

DONE, REFUSED, LOCKED = 0, 3, 6
NOBODY = 65534
ROUNDS = 3
_RENAME = "import os, socket, sys; socket.sethostname(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
READING = [
    ["ls"],
    ["report", "toy"],
    ["compare", "toy", "toy"],
    ["plan", str(TOY)],
    ["check", str(TOY)],
    ["data", str(TOY)],
    ["gc", "--dry-run"],
    [str(TOY)],
]
WRITING = [[str(TOY), "--set", "seed=9"], ["fetch", str(TOY)], ["gc"]]


@dataclass
class RenamedBench(Bench):
    """A bench on a machine whose name is set before each command, as containers and laptops have it."""

    host: str = "first"

    @property
    def command(self) -> list[str]:
        unshare = ["unshare", "-u"] if os.getuid() == 0 else ["unshare", "-ru"]
        return [*unshare, sys.executable, "-c", _RENAME, self.host, *super().command]


def run_twice(folder: Path, smooth: Bench) -> list[str]:
    """Start the same command twice at once; one of them must be refused, and the other end as if it were alone."""
    bench = Bench(folder)
    attempts = [bench.start(), bench.start()]
    codes = [attempt.end() for attempt in attempts]
    wrong = [] if sorted(codes) == [DONE, LOCKED] else [f"twice at once: exit codes {codes}"]
    winner = attempts[codes.index(DONE)].process.pid if DONE in codes else 0
    if f"pid {winner};" not in bench.said():
        wrong.append("twice at once: the refusal does not name the other process")
    if len(runs := list_runs(bench.base)) != 1 or runs[0].state.status != "finished":
        wrong.append(f"twice at once: runs {[(run.reference, run.state.status) for run in runs]}")
    return [*wrong, *differences(smooth, bench)] or ([] if bench.run() == DONE else ["nothing to do is refused"])


def run_renamed(folder: Path, smooth: Bench) -> list[str]:
    """Kill a run on one host and continue it on the next; it must be one run that ends as if undisturbed."""
    bench = RenamedBench(folder)
    hosts = []
    for stage in ("tokenizer", "pretrain", "sft", "chat_eval"):
        bench.host = f"host-{stage}"
        attempt = bench.start()
        if (found := attempt.wait_for_stage(stage)) is None:
            return [f"renamed: {stage} was not seen at work"]
        time.sleep(0.5)
        attempt.kill(attempt.process.pid, found[1])
        attempt.end()
        hosts.append(list_runs(bench.base)[-1].state.host)
    bench.host = "last"
    wrong = [] if bench.run() == DONE else ["renamed: the last attempt failed"]
    if hosts != ["host-tokenizer", "host-pretrain", "host-sft", "host-chat_eval"] or len(list_runs(bench.base)) != 1:
        wrong.append(f"renamed: {len(list_runs(bench.base))} runs, killed on {hosts}")
    return [*wrong, *differences(smooth, bench)]


def call(arguments: list[str], *, module: str = "nanochat.cli.run", **how: Any) -> tuple[int, str]:
    """Return the exit code of a command and what it said."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, **how)
    return done.returncode, done.stdout + done.stderr


def check_commands(reason: str, base: Path, **how: Any) -> list[str]:
    """Return which commands do not read the base folder, or are not refused for `reason` if they write."""
    before = {path: path.stat().st_mtime_ns for path in base.rglob("*")}
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "HOME": "/"}
    wrong = []
    for arguments in READING:
        code, said = call(arguments, env=environment, **how)
        wrong += [f"{reason}: {arguments} ended with {code}: {said[-300:]}"] if code != DONE else []
    chat = ["toy", "--prompt", "hi", "--max-tokens", "4", "--device", "cpu"]
    code, said = call(chat, module="nanochat.cli.chat", env=environment, **how)
    wrong += [f"{reason}: chat ended with {code}: {said[-300:]}"] if code != DONE else []
    for arguments in WRITING:
        code, said = call(arguments, env=environment, **how)
        if code != REFUSED or reason not in said or str(base) not in said or "NANOCHAT_BASE_DIR" not in said:
            wrong.append(f"{reason}: {arguments} ended with {code}: {said[-300:]}")
    if before != {path: path.stat().st_mtime_ns for path in base.rglob("*")}:
        wrong.append(f"{reason}: the base folder was changed")
    return wrong


def check_read_only(base: Path) -> list[str]:
    """Mount the base folder read-only in a namespace of this process's own, and call the commands there."""
    for options in (["--bind", base, base], ["-o", "remount,ro,bind", base]):
        subprocess.run(["mount", *map(str, options)], check=True)
    return check_commands("Read-only file system", base)


def check_other_user(smooth: Bench) -> list[str]:
    """Call the commands as a user without a home folder who may only read the base folder."""
    who: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    try:
        if os.getuid() != 0 or call(["check", str(TOY)], cwd="/", **who)[0] != DONE:
            raise PermissionError
    except PermissionError:
        print("another user: not tried, because this is not root, or Python may not be run by everybody", flush=True)
        return []
    for folder in (smooth.folder, *smooth.folder.parents[:-2]):
        folder.chmod(0o755)
    wrong = check_commands("Permission denied", smooth.base, cwd=smooth.folder, **who)
    environment = {name: value for name, value in os.environ.items() if name != "NANOCHAT_BASE_DIR"} | {"HOME": "/"}
    code, said = call([str(TOY)], cwd=smooth.folder, env=environment, **who)
    if code != REFUSED or "the base folder /.cache/nanochat cannot be written" not in said:
        wrong.append(f"no home folder: ended with {code}: {said[-300:]}")
    print(f"another user: {len(wrong)} deviations", flush=True)
    return wrong


def main() -> int:
    """Run all of it; return 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        for line in check_read_only(options.inside):
            print(" ".join(line.split()))
        return DONE
    runtime.prepare(device="cpu")
    folder = Path(tempfile.mkdtemp(prefix="nanochat-travel-"))
    smooth = run_undisturbed(folder / "smooth")
    wrong: list[str] = []
    for number in range(ROUNDS):
        wrong += run_twice(folder / f"twice-{number}", smooth)
    print(f"twice at once: {len(wrong)} deviations", flush=True)
    wrong += run_renamed(folder / "renamed", smooth)
    print(f"under other host names: {len(wrong)} deviations", flush=True)
    inside = ["unshare", "-rm", sys.executable, __file__, "--inside", str(smooth.base)]
    wrong += subprocess.run(inside, check=True, capture_output=True, text=True).stdout.splitlines()
    print(f"read-only: {len(wrong)} deviations", flush=True)
    wrong += check_other_user(smooth)
    return conclude(
        wrong, folder, "one run each time, the bits of the undisturbed run; what only reads works everywhere"
    )


if __name__ == "__main__":
    sys.exit(main())
