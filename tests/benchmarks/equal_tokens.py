"""Held-out bits per byte of this system and of PyTorch nanochat after training on the same rows.

    python tests/benchmarks/equal_tokens.py --text FOLDER --peer FOLDER [--steps 100 400] [--seeds 0 1 2] [--depths 12]

`--text` is a folder of parquet or JSONL files, one of which is held out; `--peer` is a checkout of karpathy/nanochat.
Our tokenizer and loader make the rows, which are the same for all systems, seeds and horizons. If there is too little
text, the rows continue with the next epoch. A seed decides the initial weights, which `current` and `peer` share, so
that they are compared seed by seed.

Systems: `plain` and `current` are our architectures `seed` and `current`, each with its own optimizer and the plan's
weight decay. `peer` is PyTorch nanochat with its own model and optimizer and the schedules of its training script. Its
weight decay is its scaling law at the tokens of the run. (The script itself ignores a horizon given in steps here: its
law then uses the tokens that would suit the model's size.) `--weight-decay` replaces the value for every system.

A new model's output projections are zero, so the first gradients of `x0_lambdas` and `backout_lambda` are rounding, of
which AdamW makes whole steps. `--projections 0.2` starts from random ones, 0.2 times as large as the other matrices.
This shows whether two systems learn by the same rules.

Every run is a process of its own, and each GPU of CUDA_VISIBLE_DEVICES has `--runs-per-gpu` of them at a time. `--data`
names a folder that keeps tokenizer and rows for the next call. Losses and results are printed as they come. Exits with
1 if a run fails, or if `current` is worse than `peer` by more than 0.002 bits per byte on average over the seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import get_args

from parts.equal_tokens_run import PROGRESS, Result, Run, System
from parts.equal_tokens_table import report

WARMUP_STEPS, WARMDOWN_FRAC = 40, 0.65
"""Those of both systems. A horizon that is too short for both has a shorter warm-up."""


def main() -> int:
    options = _parse()
    if options.run is not None:
        run = Run(**json.loads(options.run))
        if options.initial_weights:
            _write_initial_weights(run)
        else:
            print(json.dumps(asdict(_train(run))))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        options.data = options.data or Path(scratch)
        runs = list(_plan(options, _write_rows(options)))
        results = dict(_train_all(runs, options.runs_per_gpu))
    return 0 if report(results) and len(results) == len(runs) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="folder of files with a column `text`")
    parser.add_argument("--peer", default="", help="folder of karpathy/nanochat")
    parser.add_argument("--validation-shard", default="shard_00004.parquet", help="the file that is held out")
    parser.add_argument("--data", type=Path, help="folder that keeps the tokenizer and the rows")
    parser.add_argument("--systems", nargs="+", choices=get_args(System))
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--depths", type=int, nargs="+", default=[12])
    parser.add_argument("--weight-decay", type=float, nargs="+", help="Muon's weight decay")
    parser.add_argument("--projections", type=float, default=0.0, help="size of the first output projections")
    numbers = {
        "runs_per_gpu": 1,
        "tokens_per_step": 2**17,
        "micro_batch_size": 16,
        "sequence_len": 2048,
        "vocab_size": 2**15,
    }
    for name, default in (numbers | {"validation_tokens": 2**19}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--run", help=argparse.SUPPRESS)  # what a child process trains, as JSON
    parser.add_argument("--initial-weights", action="store_true", help=argparse.SUPPRESS)  # instead of training
    options = parser.parse_args()
    if options.run is None and options.text is None:
        parser.error("--text is missing")
    options.systems = options.systems or ["plain", "current", *(["peer"] if options.peer else [])]
    if "peer" in options.systems and not options.peer:
        parser.error("the system `peer` needs --peer")
    return options


def _train(run: Run) -> Result:
    """Train in this process. Each system's modules are imported only where they can be."""
    if run.system == "peer":
        from parts import equal_tokens_peer

        return equal_tokens_peer.train(run)
    from parts import equal_tokens_ours

    return equal_tokens_ours.train(run, run.system)


def _write_initial_weights(run: Run) -> None:
    from parts import equal_tokens_ours

    equal_tokens_ours.write_initial_weights(run)


def _write_rows(options: argparse.Namespace) -> int:
    """Prepare the rows of all runs, and return the size of the vocabulary."""
    from parts.equal_tokens_rows import write_rows

    from nanochat.data.sources.source_spec import SourceSpec

    began = time.monotonic()
    source = SourceSpec(name="text", path=(str(options.text / "*"),), validation_shard=options.validation_shard)
    vocab_size = write_rows(
        source,
        options.data,
        rows=max(options.steps) * options.tokens_per_step // options.sequence_len,
        sequence_len=options.sequence_len,
        vocab_size=options.vocab_size,
        validation_tokens=options.validation_tokens,
    )
    print(f"vocabulary of {vocab_size:,}; prepared in {time.monotonic() - began:.0f} s", flush=True)
    return vocab_size


def _plan(options: argparse.Namespace, vocab_size: int) -> Iterator[Run]:
    """Yield all runs. Long ones come first, so that no GPU waits for them at the end."""
    steps_first, depth_first = sorted(options.steps, reverse=True), sorted(options.depths, reverse=True)
    for steps, depth, seed, system in product(steps_first, depth_first, options.seeds, options.systems):
        for decay in options.weight_decay or [_weight_decay(system, depth, steps, options.tokens_per_step)]:
            yield Run(
                system=system,
                depth=depth,
                seed=seed,
                steps=steps,
                warmup_steps=min(WARMUP_STEPS, steps - round(WARMDOWN_FRAC * steps)),
                weight_decay=decay,
                projections=options.projections,
                tokens_per_step=options.tokens_per_step,
                micro_batch_size=options.micro_batch_size,
                vocab_size=vocab_size,
                data=str(options.data),
                peer=options.peer,
            )


def _weight_decay(system: System, depth: int, steps: int, tokens_per_step: int) -> float:
    """Return the plan's weight decay, or for the peer 0.28 * sqrt(B / 2^19) * (D_d12 / D), without any bound."""
    from nanochat.model.config import GPTConfig
    from nanochat.optim.groups import OptimizerConfig
    from nanochat.plan.derive import scaling

    tokens = steps * tokens_per_step
    if system == "peer":
        reference = 12 * GPTConfig.from_depth(12, architecture="current").num_scaling_parameters()
        return 0.28 * math.sqrt(tokens_per_step / 2**19) * reference / tokens
    config = GPTConfig.from_depth(depth, architecture="current" if system == "current" else "seed")
    optimizer = OptimizerConfig(variant=system)
    return scaling.muon_weight_decay(optimizer, config, tokens=tokens, tokens_per_step=tokens_per_step).value


def _train_all(runs: Sequence[Run], runs_per_gpu: int) -> Iterator[tuple[Run, Result]]:
    """Yield the result of every run that succeeds."""
    devices: queue.Queue[str] = queue.Queue()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",") * runs_per_gpu
    for name in names:
        devices.put(name)

    initial_weights: set[Path] = set()
    lock = threading.Lock()

    def train(run: Run) -> Result | None:
        device = devices.get()
        try:
            if run.system == "peer":
                with lock:
                    if run.initial_weights not in initial_weights:
                        environment = os.environ | {"CUDA_VISIBLE_DEVICES": device}
                        subprocess.run([*_command(run), "--initial-weights"], env=environment, check=True)
                        initial_weights.add(run.initial_weights)
            return _train_in_child(run, device)
        finally:
            devices.put(device)

    with ThreadPoolExecutor(len(names)) as pool:
        for run, result in zip(runs, pool.map(train, runs), strict=True):
            if result is not None:
                yield run, result


def _train_in_child(run: Run, device: str) -> Result | None:
    """Print and return what a run measured on one GPU, or print why it failed."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": device}
    if run.system == "peer":  # its package has the name of ours, so its process must find it first
        environment["PYTHONPATH"] = os.pathsep.join([run.peer, os.environ.get("PYTHONPATH", "")])
    title = f"d{run.depth} {run.system}, {run.steps} steps, weight decay {run.weight_decay:.3g}, seed {run.seed}"
    last_line = ""
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(
            _command(run), env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                last_line = line
                if line.startswith(PROGRESS):
                    print(f"  {title}: {line}", end="", flush=True)
        if child.returncode != 0:
            errors.seek(0)
            print(f"  {title}: FAILED\n{errors.read()[-3000:]}", flush=True)
            return None
    result = Result(**json.loads(last_line))
    print(f"  {title}: {result.bpb:.5f} bits per byte; loss {result.curve} ({result.seconds:.0f} s)", flush=True)
    return result


def _command(run: Run) -> list[str]:
    """Return the command of this script that does one run."""
    return [sys.executable, __file__, "--run", json.dumps(asdict(run))]


if __name__ == "__main__":
    raise SystemExit(main())
