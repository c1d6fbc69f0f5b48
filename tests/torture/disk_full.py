"""Fill the disk during a run: it exits with 4, keeps its checkpoints intact, and resumes once there is room again.

`python tests/torture/disk_full.py`. The base folder is a small tmpfs of this process's own (Linux, as root or where
user namespaces are allowed); a file that takes up its space plays the full disk.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compare import differences
from process import Attempt, Bench, conclude, run_undisturbed

from nanochat import runtime
from nanochat.storage.layout import list_checkpoints

SIZE_BYTES = 64 * 2**20
FULL, DONE = 4, 0
STAGES = ("tokenizer", "pretrain", "pretrain", "sft", "sft", "chat_eval")


def fill(bench: Bench, left_bytes: int) -> Path:
    """Write a file that leaves `left_bytes` free, and return it."""
    ballast = bench.folder / "ballast"
    with ballast.open("wb") as file:
        while True:
            size = max(1, shutil.disk_usage(bench.folder).free - left_bytes)
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError:  # the run wrote meanwhile
                continue
            return ballast


def wait_for_checkpoint(bench: Bench, attempt: Attempt, stage: str) -> None:
    """Wait until a training stage has saved a checkpoint, so that there is something to lose."""
    while stage in ("pretrain", "sft") and attempt.process.poll() is None:
        if list_checkpoints(bench.stage(stage) / "checkpoints"):
            return
        time.sleep(0.05)


def fill_during(bench: Bench, stage: str, left_bytes: int, moment_seconds: float) -> tuple[int, list[str]]:
    """Fill the disk while a stage runs; return the exit code and every deviation."""
    from nanochat.checkpoint.snapshots import find_damage

    attempt = bench.start()
    found = attempt.wait_for_stage(stage)
    if found is None:
        return DONE, [f"{stage} was not seen at work"]
    wait_for_checkpoint(bench, attempt, found[0])
    time.sleep(moment_seconds)
    ballast = fill(bench, left_bytes)
    code = attempt.end()
    said = bench.said().rstrip().splitlines()[-4:]
    hit = [name for name in ("no space left", "disk is full") if any(name in line for line in said)]
    checkpoints = list_checkpoints(bench.stage(found[0]) / "checkpoints")
    damaged = [str(path) for path in checkpoints.values() if find_damage(path) is not None]
    ballast.unlink()
    print(
        f"{found[0]}, {left_bytes:,} bytes left: exit {code}, {len(checkpoints)} checkpoints whole: {said[-1]}",
        flush=True,
    )
    wrong = [f"{stage}: damaged checkpoint {path}" for path in damaged]
    if code == FULL and not hit:
        wrong.append(f"{stage}: exit {code} without saying that the disk is full: {said}")
    if code not in (FULL, DONE):
        wrong.append(f"{stage}: exit {code}, not {FULL}: {said}")
    if any("Traceback" in line for line in said):
        wrong.append(f"{stage}: a traceback: {said}")
    return code, wrong


def main() -> int:
    """Run once with room, then with the disk filled in each stage; the outcome must be the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        return _in_own_namespace(options.seed)
    runtime.prepare(device="cpu")
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="nanochat-disk-"))
    rough = Bench(folder / "small")
    rough.folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "none", str(rough.folder)], check=True)
    smooth = run_undisturbed(folder / "smooth")
    wrong: list[str] = []
    codes: list[int] = []
    for stage in STAGES:
        left_bytes = rng.choice([0, 4096, 100_000, 1_500_000])
        code, found = fill_during(rough, stage, left_bytes, rng.uniform(0.5, 2.5))
        codes.append(code)
        wrong += found
    if codes.count(FULL) < len(STAGES) / 2:
        wrong.append(f"the disk was hardly ever full: exits {codes}")
    code = rough.run()
    wrong += [f"with room it ended with {code}"] if code != DONE else differences(smooth, rough)
    if wrong:
        wrong.append(rough.said()[-6000:])
    else:
        subprocess.run(["umount", "--lazy", str(rough.folder)], check=True)
    filled = f"a disk filled in {', '.join(STAGES)}: exits {', '.join(map(str, codes))}"
    return conclude(wrong, folder, f"{filled}; earlier checkpoints whole, and with room the run ended as undisturbed")


def _in_own_namespace(seed: int) -> int:
    again = [sys.executable, __file__, "--inside", "--seed", str(seed)]
    if shutil.which("unshare") is None:
        raise SystemExit("this needs Linux: a small tmpfs plays the full disk (`unshare -rm`)")
    return subprocess.run(["unshare", "-rm", *again]).returncode


if __name__ == "__main__":
    sys.exit(main())
