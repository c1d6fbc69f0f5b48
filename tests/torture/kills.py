"""Kill a run at random moments and damage its checkpoints; the same command must end as if nothing had happened.

`python tests/torture/kills.py --kills 50 --seed 1`: minutes to an hour, by the machine. A failure prints what differs,
keeps the folder and exits with 1.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from compare import count_points, differences
from process import STAGES, Attempt, Bench, conclude, run_undisturbed, wait_until_gone

from nanochat import runtime
from nanochat.runner.store.record import read_record
from nanochat.storage.layout import StageFolder, list_checkpoints

KILLED, DONE = 4, 0
TRAINING = ("pretrain", "sft")
END_SECONDS = 4.0
"""About how long the report and the last upload to MLflow take."""
SHARES = {"tokenizer": 2, "pretrain": 5, "base_eval": 2, "sft": 5, "chat_eval": 2, "end": 1}
"""Relative frequency with which each stage is the target."""
MANY = 50
"""At least this many kills must hit every stage and do every kind of damage."""


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


@dataclass(frozen=True)
class Aim:
    """The stage to hit (`end`: after the last), the process to kill, and when: a fraction of the stage's usual time."""

    stage: str
    victim: str
    moment: float


@dataclass
class Tally:
    """Counts of the kills and damages so far."""

    kills: Counter[str] = field(default_factory=Counter)
    victims: Counter[str] = field(default_factory=Counter)
    damages: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    last_damage: str = ""

    def total(self) -> int:
        return self.kills.total()


@dataclass(frozen=True)
class Expected:
    """What the next attempt of a training stage must report: the step it resumes after, the checkpoint it skips."""

    step: int
    damaged: Path | None


def torture(bench: Bench, aims: list[Aim], seconds: dict[str, float], tally: Tally) -> dict[str, Expected]:
    """Run the command to its end, killing it once for each aim while there is something to kill.

    Return, for each training stage that a kill interrupted, what its next attempt must report.
    """
    expected: dict[str, Expected] = {}
    for aim in aims:
        attempt = bench.start()
        if not reach(attempt, aim, seconds):
            break
        now = attempt.child()
        hit, child = now if now is not None else ("between stages" if aim.stage != "end" else "end", 0)
        pids = {"child": (child,), "parent": (attempt.process.pid,), "both": (child, attempt.process.pid)}[aim.victim]
        attempt.kill(*(pid for pid in pids if pid))
        code = attempt.end()
        tally.kills[hit] += 1
        tally.victims[aim.victim] += 1
        if child and not wait_until_gone(child):
            raise SystemExit(f"the child {child} outlives its parent: {bench.output}")
        if aim.victim == "child" and child and code not in (KILLED, DONE):
            raise SystemExit(f"a killed child must end the command with {KILLED}, not {code}: {bench.output}")
        damaged = damage_newest(bench, hit, tally) if hit in TRAINING else None
        expected |= expect_to_resume(bench, damaged)
        damage = f"; {tally.last_damage} at {damaged.name}" if damaged else ""
        print(f"  kill {tally.total()}: {aim.victim} in {hit}, {aim.moment:.0%} in, exit {code}{damage}", flush=True)
    return expected


def reach(attempt: Attempt, aim: Aim, seconds: dict[str, float]) -> bool:
    """Wait for the moment of an aim; return whether the command is still there then."""
    if aim.stage == "end":
        if not attempt.wait_between("chat_eval"):
            return False
        time.sleep(aim.moment * END_SECONDS)
    else:
        found = attempt.wait_for_stage(aim.stage)
        if found is None:
            return False
        time.sleep(aim.moment * seconds[found[0]])
    return attempt.process.poll() is None


def expect_to_resume(bench: Bench, damaged: Path | None) -> dict[str, Expected]:
    """Return what each unfinished training stage must report next, according to the files alone."""
    from nanochat.checkpoint.snapshots import find_damage

    found = {}
    for stage in TRAINING:
        for folder in (bench.base / "stages" / stage).glob("[!.]*"):
            sound = [s for s, path in list_checkpoints(folder / "checkpoints").items() if find_damage(path) is None]
            if sound and not (folder / "record.json").exists():
                is_here = damaged is not None and folder in damaged.parents
                found[stage] = Expected(max(sound), damaged if is_here else None)
    return found


def unmet(bench: Bench, expected: dict[str, Expected], tally: Tally) -> list[str]:
    """Return a line for each stage that did not resume where it could, or did not report a damaged checkpoint."""
    said = bench.said()
    tally.resumed += said.count("resuming after step ")
    wrong = []
    for stage, report in expected.items():
        steps = re.findall(rf"^\d-{stage}: resuming after step ([\d,]+)$", said, re.MULTILINE)
        if not steps or int(steps[-1].replace(",", "")) != report.step:
            wrong.append(f"{stage} last resumed after {steps[-1:] or 'nothing'}, not after step {report.step}")
        if report.damaged is not None and f"checkpoint {report.damaged} is damaged (" not in said:
            wrong.append(f"{stage} did not say that {report.damaged} is damaged")
    return wrong


def damage_newest(bench: Bench, stage: str, tally: Tally) -> Path | None:
    """Damage the newest checkpoint of a stage, half of the time and if an older one is intact; return its path."""
    from nanochat.checkpoint.snapshots import find_damage

    found = sorted(list_checkpoints(bench.stage(stage) / "checkpoints").items())
    if tally.total() % 2 or len(found) < 2 or any(find_damage(path) for _, path in found[-2:]):
        return None
    damage = DAMAGES[tally.damages.total() % len(DAMAGES)]
    damage(found[-1][1])
    tally.damages[damage.__name__] += 1
    tally.last_damage = damage.__name__
    return found[-1][1]


def draw_aims(rng: random.Random, count: int) -> list[Aim]:
    """Return the aims of a round by stage. Early moments are likelier, because every kill leaves less to do."""
    stages = rng.choices(list(SHARES), weights=list(SHARES.values()), k=count)
    victims = rng.choices(["child", "both", "parent"], weights=[5, 3, 2], k=count)
    order = (*STAGES, "end")
    aims = zip(sorted(stages, key=order.index), victims, strict=True)
    return [Aim(s, v if s != "end" else "parent", rng.random() ** 1.5) for s, v in aims]


def stage_seconds(bench: Bench) -> dict[str, float]:
    """Return the duration of each stage."""
    records = {stage: read_record(StageFolder(bench.stage(stage))) for stage in STAGES}
    return {stage: record.measured.seconds or 1.0 for stage, record in records.items() if record is not None}


def main() -> int:
    """Kill runs until the count is reached; return 1 at the first run that ends differently."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    runtime.prepare(device="cpu")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="nanochat-torture-"))
    smooth = run_undisturbed(folder / "smooth")
    seconds = stage_seconds(smooth)
    print(f"undisturbed: {', '.join(f'{name} {value:.1f} s' for name, value in seconds.items())}", flush=True)
    rng, tally, rounds, points = random.Random(options.seed), Tally(), 0, 0
    while tally.total() < options.kills:
        rounds += 1
        rough = Bench(folder / f"round-{rounds}")
        aims = draw_aims(rng, min(16, options.kills - tally.total()))
        before = tally.total()
        expected = torture(rough, aims, seconds, tally)
        code = rough.run()
        found = [f"the last attempt ended with {code}"] if code != DONE else differences(smooth, rough)
        found += unmet(rough, expected, tally)
        points += count_points(rough)
        print(f"round {rounds}: {tally.total() - before} kills, {len(found)} differences", flush=True)
        if found:
            return conclude(found, folder, "")
    missed = {*STAGES} - {*tally.kills} | {one.__name__ for one in DAMAGES} - {*tally.damages}
    success = (
        f"{tally.total()} kills ({_shown(tally.kills)}; {_shown(tally.victims)}) and {tally.damages.total()} damaged "
        f"checkpoints ({_shown(tally.damages)}) in {rounds} runs, resumed {tally.resumed} times: weights, "
        f"metrics.jsonl, results and MLflow history ({points:,} points) are those of the undisturbed run"
    )
    never_done = [f"never done: {', '.join(sorted(missed))}: another seed"] if missed and options.kills >= MANY else []
    return conclude(never_done, folder, success)


def _shown(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
