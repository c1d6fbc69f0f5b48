"""Cut the power 20 times during a run: what was not flushed is gone, and the same command ends as if undisturbed.

`python tests/torture/power_cut.py` (about five minutes). It needs Linux and root: the base folder lies on an ext4 image
that is mounted through a loop device, and an image that is copied while the run is stopped holds what a disk would hold
after a cut. It is skipped elsewhere. A failure prints what is wrong, keeps the folder and exits with 1.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from compare import compare_folders
from process import Attempt, Bench, conclude, small_bench

CUTS, SPARE = 20, 8
"""How many cuts there must be, and how many more are tried: names that live shortly may be missed in the second run."""
IMAGE_BYTES = 400 * 2**20
OPTIONS = "commit=600,noauto_da_alloc,data=writeback"
"""Nothing but fsync brings a file to disk in time: no commit every few seconds, no flush of a file that is renamed."""
_POLL_SECONDS = 0.002
_SETTLE_SECONDS, _STOP_SECONDS = 0.05, 1.0
_SCRATCH = re.compile(r"\.writing-|\.lock$|^lock$|progress\.json|log\.txt|\.jsonl$")
DONE = 0


@contextlib.contextmanager
def mounted(image: Path, folder: Path) -> Iterator[None]:
    """Mount an image at a folder, which replays its journal as after a power cut."""
    subprocess.run(["mount", "-o", f"loop,{OPTIONS}", str(image), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def names_in(base: Path) -> list[str]:
    """Return the finished files and folders under a base folder, without those of clocks and processes."""
    names = (path.relative_to(base).as_posix() for path in base.rglob("*"))
    return [name for name in names if not any(_SCRATCH.search(part) for part in name.split("/"))]


def watch(attempt: Attempt) -> Iterator[str]:
    """Yield the name of each file or folder when it appears in the base folder, until the command ends."""
    seen: set[str] = set()
    while attempt.process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # it was deleted while the folder was read
            for name in sorted(set(names_in(attempt.bench.base)) - seen):
                seen.add(name)
                yield re.sub(r"\d{8}-\d{6}", "TIME", name)
        time.sleep(_POLL_SECONDS)


def signal_all(attempt: Attempt, number: signal.Signals) -> list[psutil.Process]:
    """Send a signal to a command and all processes that it started, and return them."""
    processes: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        command = psutil.Process(attempt.process.pid)
        processes = [command, *command.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    return processes


def is_stopped(process: psutil.Process) -> bool:
    """Return whether a process does nothing any more, and is not inside a system call such as an fsync."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    return True


def stop(attempt: Attempt) -> None:
    """Stop a command. One that is starting a process cannot stop while that process is stopped: then try again."""
    while True:
        deadline = time.monotonic() + _STOP_SECONDS
        processes = signal_all(attempt, signal.SIGSTOP)
        while time.monotonic() < deadline:
            if all(map(is_stopped, processes)):
                return
            time.sleep(_POLL_SECONDS)
        signal_all(attempt, signal.SIGCONT)
        time.sleep(_SETTLE_SECONDS)


def cut(attempt: Attempt, image: Path, copy: Path) -> None:
    """Copy the image as it is now, while the command is stopped."""
    stop(attempt)
    time.sleep(_SETTLE_SECONDS)
    subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
    signal_all(attempt, signal.SIGCONT)


def moments(bench: Bench) -> list[str]:
    """Run to the end, and return the names at whose appearance to cut: the records, and others evenly."""
    appeared = list(watch(bench.start()))
    records = [name for name in appeared if name.endswith(("record.json", "parts.json", "run.json"))]
    others = [name for name in appeared if name not in records]
    missing = CUTS + SPARE - len(records)
    chosen = {*records, *(others[round(i * (len(others) - 1) / (missing - 1))] for i in range(missing))}
    return [name for name in appeared if name in chosen]


def main() -> int:
    """Run once undisturbed, once with the image copied at each moment, and then from each copy."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mkfs.ext4") or not Path("/dev/loop0").exists():
        print("power cuts: skipped, because this needs Linux, root, mkfs.ext4 and loop devices")
        return 0
    folder = Path(tempfile.mkdtemp(prefix="nanochat-power-"))
    disk, image = folder / "disk", folder / "disk.img"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    smooth = small_bench(folder / "smooth")
    chosen = moments(smooth)
    wrong: list[str] = []
    cuts: dict[str, Path] = {}
    with mounted(image, disk):
        os.sync()
        attempt = small_bench(disk / "rough").start()
        for name in watch(attempt):
            if name in chosen and name not in cuts:
                cuts[name] = folder / f"cut{len(cuts)}.img"
                cut(attempt, image, cuts[name])
        code = attempt.end()
    if code != DONE or len(cuts) < CUTS:
        wrong.append(f"the run that was copied {len(cuts)} times ended with {code}")
    for name, copy in cuts.items():
        with mounted(copy, disk):
            left = names_in(disk / "rough" / "base") if (disk / "rough").exists() else []
            rough = small_bench(disk / "rough")
            code = rough.run()
            found = [f"ended with {code}:\n{rough.said()[-3000:]}"] if code != DONE else compare_folders(smooth, rough)
            damaged = [line for line in rough.said().splitlines() if "damaged" in line]
        print(
            f"  cut at {name}: {len(left)} names left, exit {code}{''.join(f'; {line}' for line in damaged)}",
            flush=True,
        )
        # Damage is repaired, but nothing may vouch for a file that was not flushed.
        wrong += [f"cut at {name}: {line}" for line in (*found, *damaged)]
        copy.unlink()
    return conclude(wrong, folder, f"{len(cuts)} power cuts: the same command always ended like the undisturbed run")


if __name__ == "__main__":
    sys.exit(main())
