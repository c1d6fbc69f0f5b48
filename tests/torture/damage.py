"""Damage every file that a run leaves: the next command names it, computes it again or refuses, and no number changes.

`python tests/torture/damage.py [--group NAME]`: about ten minutes. Each file is truncated, changed in one bit, removed,
and replaced by that of a run with a different seed. A failure prints what is wrong, keeps the folder and exits with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from compare import compare_folders
from process import SMALL, STAGES, TOY, Bench, conclude, small_bench

from nanochat import runtime
from nanochat.cli.run import main as run_command
from nanochat.runner.store.record import read_record
from nanochat.storage.layout import StageFolder

DONE, REFUSED = 0, 3
Damage = Callable[[Path, Path], None]


def truncate(path: Path, _other: Path) -> None:
    """Cut the file in half."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path, _other: Path) -> None:
    """Change one bit of the file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_secretly(path: Path, other: Path) -> None:
    """Change one bit, but not the time of the last change."""
    status = path.stat()
    flip(path, other)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove(path: Path, _other: Path) -> None:
    """Delete the file."""
    path.unlink()


def swap(path: Path, other: Path) -> None:
    """Replace the file by that of another run."""
    shutil.copy(other, path)


KINDS: Mapping[str, Damage] = {"truncated": truncate, "flipped": flip, "removed": remove, "swapped": swap}


@dataclass
class Trial:
    """A run that is damaged again and again, the run that it must equal, and one with a different seed."""

    smooth: Bench
    rough: Bench
    other: Bench
    damages: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    said: str = ""
    """What the last command printed."""

    def damage(self, kind: str, act: Damage, path: Path, *, twin: Path | None = None) -> bool:
        """Damage a file of the rough run, and return whether its content is another one now.

        It is swapped with `twin`; default: the file of the other run that has the same place.
        """
        before = path.read_bytes()
        if act is swap:
            twin = twin or self._twin(path)
            if not twin.exists() or twin.read_bytes() == before:
                return False
        act(path, twin or path)
        self.damages[kind] += 1
        return True

    def run(self, what: str, *options: str, code: int = DONE, named: Iterable[str] = ()) -> None:
        """Run the command again: it ends with this code, its lines contain `named`, and all results are the same."""
        before = len(self.rough.said())
        found = replace(self.rough, options=options).run()
        self.said = self.rough.said()[before:]
        if found != code:
            self.wrong.append(f"{what}: exit {found}, not {code}:\n{self.said[-2000:]}")
        self.wrong += [f"{what}: does not name {name}:\n{self.said[-2000:]}" for name in named if name not in self.said]
        differences = compare_folders(self.smooth, self.rough)
        self.wrong += [f"{what}: {line}" for line in differences if "left behind: checkpoints" not in line]
        print(f"  {what}: exit {found}", flush=True)

    def folder(self, stage: str) -> StageFolder:
        return StageFolder(self.rough.stage(stage))

    def _twin(self, path: Path) -> Path:
        """Return the file of the other run that has the same place in its stage, cache or copy."""
        parts = path.relative_to(self.rough.base).parts
        if parts[0] == "stages":
            return self.other.stage(parts[1]).joinpath(*parts[3:])
        (folder,) = (entry for entry in (self.other.base / parts[0]).iterdir() if entry.is_dir())
        return folder.joinpath(*parts[2:])


def finished_stages(trial: Trial) -> None:
    """Damage each file of the finished stages, one in each stage at a time: that stage alone runs again."""
    names = {stage: ["record.json", *read_record(trial.folder(stage)).files] for stage in STAGES}  # type: ignore[union-attr]
    for kind, act in KINDS.items():
        for i in range(max(map(len, names.values()))):
            chosen = {stage: files[i] for stage, files in names.items() if i < len(files)}
            hit = [s for s, name in chosen.items() if trial.damage(kind, act, trial.folder(s).path / name)]
            what = f"{kind}: {', '.join(f'{stage}/{chosen[stage]}' for stage in hit)}"
            trial.run(what)
            for stage in STAGES:
                title = f"{STAGES.index(stage) + 1}-{stage}: "
                lines = [line for line in trial.said.splitlines() if line.startswith(title)]
                if stage in hit and not any(" runs, " in line and chosen[stage] in line for line in lines):
                    trial.wrong.append(f"{what}: {stage} does not say that {chosen[stage]} is damaged")
                if stage not in hit and any(": runs" in line for line in lines):
                    trial.wrong.append(f"{what}: {stage} ran too")


def loaded_files(trial: Trial) -> None:
    """Change a byte, but not the time, of each file that a later stage loads, and let that stage run."""
    model = [f"out/model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.model")]
    loads = {
        ("tokenizer", "pretrain"): ["out/tokenizer.model"],
        ("pretrain", "sft"): [*model, "out/optimizer.safetensors"],
        ("pretrain", "base_eval"): model,
        ("sft", "chat_eval"): model,
    }
    for (stage, reader), names in loads.items():
        for name in names:
            trial.damage("flipped, time kept", flip_secretly, trial.folder(stage).path / name)
            said = f"{stage}: runs, damaged: {name} has changed"
            trial.run(f"time kept: {stage}/{name}, read by {reader}", "--force", reader, named=[said])


def models(trial: Trial) -> None:
    """Damage each file of a model, and export it or start from it: both refuse and name the file."""
    folder = trial.folder("pretrain")
    for path in (*sorted(folder.model.iterdir()), folder.optimizer, folder.record):
        for kind, act in {**KINDS, "flipped, time kept": flip_secretly}.items():
            backup = shutil.copy2(path, trial.rough.folder / "backup")
            if not trial.damage(kind, act, path):
                continue
            target = trial.rough.folder / "exported"
            exported = ["export", "--format", "torch", str(folder.path), str(target)]
            started = [str(TOY), *(f"--set={x}" for x in (*SMALL, f"sft.init_from={folder.model}"))]
            alone = [f"--set={x}=null" for x in ("tokenizer", "model", "pretrain", "base_eval", "chat_eval")]
            for what, arguments in {"export": exported, "init_from": [*started, *alone]}.items():
                code, said = _call(arguments, trial.rough)
                named = "model.safetensors" if (path, act) == (folder.record, swap) else path.name
                if code != REFUSED or named not in said or target.exists():
                    trial.wrong.append(f"{what} of a model whose {path.name} is {kind}: exit {code}: {said[-2000:]}")
            path.unlink(missing_ok=True)
            shutil.copy2(backup, path)
        print(f"  export and init_from with a damaged {path.name}: refused", flush=True)


def token_cache(trial: Trial) -> None:
    """Damage each file of the token cache and pretrain again."""
    _shared_files(trial, sorted(trial.rough.base.glob("tokens/*/[!.]*")), "pretrain")


def converted_copy(trial: Trial) -> None:
    """Damage each file of the converted copy of the data and train the tokenizer again."""
    _shared_files(trial, sorted(trial.rough.base.glob("ingest/*/[!.]*")), "tokenizer")


def _shared_files(trial: Trial, paths: list[Path], stage: str) -> None:
    for path in paths:
        for kind, act in {**KINDS, "flipped, time kept": flip_secretly}.items():
            if trial.damage(kind, act, path):
                is_lost_list = path.name == "parts.json" and act is remove and "tokens" in path.parts
                named = [] if is_lost_list else [path.parent.name]
                trial.run(f"{kind}: {path.name}", "--force", stage, named=named)


def interrupted_training(trial: Trial) -> None:
    """Damage what a stopped training stage left: the series and samples, and each file of its newest checkpoint."""
    stages = ("pretrain", "sft")
    kept = replace(trial.rough, overrides=(*trial.rough.overrides, "run.checkpoint.keep_when_done=true"))
    if replace(kept, options=("--force", "pretrain", "--force", "sft")).run() != DONE:
        raise SystemExit(f"the run that keeps checkpoints failed:\n{kept.said()}")
    newest = {stage: max((trial.rough.stage(stage) / "checkpoints").iterdir()) for stage in stages}
    saved = {stage: shutil.copytree(path, trial.rough.folder / f"saved-{stage}") for stage, path in newest.items()}
    inside = [f"checkpoints/{{}}/{path.name}" for path in sorted(newest["sft"].iterdir())]
    outside = ["metrics.jsonl", "timings.jsonl", "out/samples.md", "out/result.json", "out/optimizer.safetensors"]
    tortured, trial.rough = trial.rough, kept
    for kind, act in KINDS.items():
        for name in (*outside, *inside):
            reported: list[str] = []
            for stage in stages:
                trial.folder(stage).record.unlink()
                path = trial.folder(stage).path / name.format(newest[stage].name)
                twin = saved[stages[1 - stages.index(stage)]] / path.name if name in inside else None
                if trial.damage(kind, act, path, twin=twin) and name in inside:
                    reported.append(f"checkpoint {newest[stage]} is damaged (")
            trial.run(f"interrupted, {kind}: {name.format('NEWEST')}", named=reported)
            for stage in stages:
                shutil.rmtree(newest[stage])
                shutil.copytree(saved[stage], newest[stage])
    trial.rough = tortured
    for stage in stages:
        shutil.rmtree(trial.rough.stage(stage) / "checkpoints")


def interrupted_evaluation(trial: Trial) -> None:
    """Damage a suite of a stopped evaluation: that suite runs again."""
    names = {"base_eval": ["suites/bpb.json"], "chat_eval": ["suites/counting.json", "out/tables/counting.jsonl"]}
    for kind, act in KINDS.items():
        for stage, files in names.items():
            for name in files:
                trial.folder(stage).record.unlink()
                trial.damage(kind, act, trial.folder(stage).path / name)
                is_lost = act is remove and name.startswith("suites")
                suite = Path(name).stem
                trial.run(
                    f"interrupted, {kind}: {stage}/{name}", named=[] if is_lost else [f"{stage}: {suite} runs again"]
                )


GROUPS: Mapping[str, Callable[[Trial], None]] = {
    group.__name__: group
    for group in (
        finished_stages,
        loaded_files,
        models,
        token_cache,
        converted_copy,
        interrupted_training,
        interrupted_evaluation,
    )
}


def _call(arguments: list[str], bench: Bench) -> tuple[int, str]:
    """Run a command in this process, for speed, and return its exit code and what it printed."""
    said = io.StringIO()
    os.environ["NANOCHAT_BASE_DIR"] = str(bench.base)
    with contextlib.chdir(bench.folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run_command(arguments)
    return code, said.getvalue()


def _prepare(folder: Path) -> Trial:
    """Return a trial of a run, its copy and a run with a different seed, all finished."""
    benches = {}
    for name, seed in (("smooth", 3), ("rough", 3), ("other", 4)):
        benches[name] = bench = small_bench(folder / name, seed=seed)
        if name == "rough":
            shutil.copytree(folder / "smooth" / "base", bench.base, symlinks=True)
        if bench.run() != DONE:
            raise SystemExit(f"the undisturbed run failed:\n{bench.said()}")
    return Trial(benches["smooth"], benches["rough"], benches["other"])


def main() -> int:
    """Damage one file after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", action="append", choices=GROUPS, help="only this group of damages (repeatable)")
    options = parser.parse_args()
    runtime.prepare(device="cpu")
    folder = Path(tempfile.mkdtemp(prefix="nanochat-damage-"))
    began = time.monotonic()
    trial = _prepare(folder)
    for name in options.group or GROUPS:
        print(f"{name}: {GROUPS[name].__doc__}", flush=True)
        GROUPS[name](trial)
    count = ", ".join(f"{count} {kind}" for kind, count in trial.damages.items())
    minutes = (time.monotonic() - began) / 60
    success = f"{trial.damages.total()} damages in {minutes:.0f} minutes ({count}): named, and nothing has changed"
    return conclude(trial.wrong, folder, success)


if __name__ == "__main__":
    sys.exit(main())
