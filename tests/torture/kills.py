"""Kill a run at random moments and damage its checkpoints; the same command must end as if nothing had happened.

`python tests/torture/kills.py --kills 50 --seed 1`: minutes to an hour, by the machine. A failure prints what differs,
keeps the folder and exits with 1.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from compare import differences
from process import STAGES, Bench

from nanochat import runtime

KILLED, DONE = 4, 0
SHARES = {"tokenizer": 2, "pretrain": 5, "base_eval": 2, "sft": 5, "chat_eval": 2}
"""How often a stage is the one that is aimed at."""


def truncate(checkpoint: Path) -> None:
    """Cut the weights in half."""
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def flip_byte(checkpoint: Path) -> None:
    """Change one bit of the optimizer's state."""
    path = checkpoint / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def lose_file(checkpoint: Path) -> None:
    """Delete the loader's state."""
    (checkpoint / "loader.safetensors").unlink()


def empty(checkpoint: Path) -> None:
    """Leave the folder with nothing in it."""
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGES: tuple[Callable[[Path], None], ...] = (truncate, flip_byte, lose_file, empty)


@dataclass
class Tally:
    """What was done so far."""

    kills: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)

    def total(self) -> int:
        return self.kills.total()


def torture(bench: Bench, aims: list[tuple[str, str, float]], seconds: dict[str, float], tally: Tally) -> int:
    """Run the command to its end, killing it once for each aim while there is something to kill; return the kills.

    An aim is a stage, a victim, and the moment as a share of half of what the stage takes undisturbed.
    """
    done = 0
    for stage, victim, moment in aims:
        attempt = bench.start()
        found = attempt.wait_for_stage(stage)
        if found is None:
            break
        hit, child = found
        time.sleep(moment * seconds[hit] / 2)
        if attempt.process.poll() is not None:
            break
        now = attempt.child()
        hit, child = now if now is not None else ("between stages", 0)
        pids = {"child": (child,), "parent": (attempt.process.pid,), "both": (child, attempt.process.pid)}[victim]
        attempt.kill(*(pid for pid in pids if pid))
        code = attempt.end()
        done += 1
        tally.kills[hit] += 1
        tally.victims[victim] += 1
        damaged = damage_newest(bench, hit, tally) if hit in ("pretrain", "sft") else ""
        print(f"  kill {tally.total()}: {victim} in {hit}, {moment:.0%} in, exit {code}{damaged}", flush=True)
        if victim == "child" and hit != "between stages" and code not in (KILLED, DONE):
            raise SystemExit(f"a killed child must end the command with {KILLED}, not {code}: {bench.output}")
    return done


def damage_newest(bench: Bench, stage: str, tally: Tally) -> str:
    """Damage the newest checkpoint of a stage where there is a sound one before it; return what was done."""
    from nanochat.checkpoint.snapshots import find_damage, list_checkpoints

    found = sorted(list_checkpoints(bench.stage(stage) / "checkpoints").items())
    if len(found) < 2 or any(find_damage(path) for _, path in found[-2:]):
        return ""
    if tally.total() % 2:  # as often undamaged
        return ""
    damage = DAMAGES[tally.damages.total() % len(DAMAGES)]
    damage(found[-1][1])
    tally.damages[damage.__name__] += 1
    return f"; {damage.__name__} at step {found[-1][0]}"


def draw_aims(rng: random.Random, count: int) -> list[tuple[str, str, float]]:
    """Return the aims of a round in the order of the stages: stage, victim, moment."""
    stages = rng.choices(list(SHARES), weights=list(SHARES.values()), k=count)
    victims = rng.choices(["child", "both", "parent"], weights=[5, 3, 2], k=count)
    return [(s, v, rng.random()) for s, v in zip(sorted(stages, key=STAGES.index), victims, strict=True)]


def stage_seconds(bench: Bench) -> dict[str, float]:
    """Return what each stage took."""
    from nanochat.runner.folders import StageFolder
    from nanochat.runner.record import read_record

    records = {stage: read_record(StageFolder(bench.stage(stage))) for stage in STAGES}
    return {stage: record.measured.seconds or 1.0 for stage, record in records.items() if record is not None}


def main() -> int:
    """Torture until the count is reached; return 1 at the first difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    runtime.prepare(device="cpu")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="nanochat-torture-"))
    smooth = Bench(folder / "smooth")
    if smooth.run() != DONE:
        raise SystemExit(f"the undisturbed run failed:\n{smooth.said()}")
    seconds = stage_seconds(smooth)
    print(f"undisturbed: {', '.join(f'{name} {value:.1f} s' for name, value in seconds.items())}", flush=True)
    rng, tally, rounds = random.Random(options.seed), Tally(), 0
    while tally.total() < options.kills:
        rounds += 1
        rough = Bench(folder / f"round-{rounds}")
        aims = draw_aims(rng, min(16, options.kills - tally.total()))
        done = torture(rough, aims, seconds, tally)
        code = rough.run()
        found = [f"the last attempt ended with {code}"] if code != DONE else differences(smooth, rough)
        print(f"round {rounds}: {done} kills, {len(found)} differences", flush=True)
        if found:
            print("\n".join(found), f"kept: {folder}", sep="\n")
            return 1
    print(
        f"{tally.total()} kills ({_shown(tally.kills)}; {_shown(tally.victims)}) and {tally.damages.total()} damaged "
        f"checkpoints ({_shown(tally.damages)}) in {rounds} runs: weights, metrics.jsonl, results and MLflow history "
        "are those of the undisturbed run"
    )
    shutil.rmtree(folder)
    return 0


def _shown(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
