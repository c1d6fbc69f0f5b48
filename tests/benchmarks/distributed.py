"""Training on several processes of this machine, compared with one process: speed, and whether the losses agree.

    python tests/benchmarks/distributed.py [--processes 2] [--backend auto] [--device auto] [--steps 12] [--rows R]

A step has `--rows` rows per process and includes the update. Defaults: on a GPU 16 rows of 2,048 tokens at 286M
parameters, on a CPU 8 rows of 256 tokens at the quickstart's size. One process trains on the same rows in as many
micro-batches. On a GPU one process also trains on steps of `--rows` rows, as a user with a single card would.

Prints tokens per second, the range of step times, and peak memory of each; then the speed-up, and how far the losses of
the first and of all steps are apart. Every run starts from the same weights and sees the same tokens. Times are medians
over steps that are each waited for, so all the work of a step is counted. Exits with 1 if the losses differ by more
than `FIRST_BOUND` or `LATER_BOUND`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from parts.measuring import describe_machine, option_parser, training_step

from nanochat import runtime
from nanochat.data.loaders.batches import Batch
from nanochat.model.config import GPTConfig
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.runner.process.hosts import backend_of, launch_options

FIRST_BOUND = {"float32": 1e-5, "bfloat16": 2e-3}
"""Allowed difference of the first losses, in nats: the weights are the same, only the order of sums differs."""
LATER_BOUND = {"float32": 5e-3, "bfloat16": 0.1}
"""Allowed difference of any losses, in nats: Muon and Adam normalise tiny gradients, so rounding errors grow."""
CPU_CONFIG = GPTConfig(
    sequence_len=256, vocab_size=2048, n_layer=4, n_head=2, n_kv_head=2, n_embd=128, window_pattern="L"
)
WARM_UP = 3
TIMEOUT_SECONDS = 240.0


def work(options: argparse.Namespace) -> None:
    """Train as one of `--processes` processes. Rank 0 writes its measurements to `--out`."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())  # the launcher polls it in a busy loop while open
    chosen = runtime.prepare(device=options.device)
    import mlx.core as mx

    from nanochat.model.device import device_name, peak_flops, select_device
    from nanochat.model.dispatch import FastGPT
    from nanochat.train.step import Rates

    select_device(chosen.backend)
    world = None
    if options.processes > 1:
        world = mx.distributed.init(strict=True, backend=options.backend)
        assert world.size() == options.processes, f"{world.size()} processes, not {options.processes}"
    rank = 0 if world is None else world.rank()
    config = CPU_CONFIG if chosen.backend == "cpu" else GPTConfig(sequence_len=2048)
    model = FastGPT(config)
    step = training_step(model, rows=options.rows, micro_batch_size=options.micro, dtype=chosen.dtype, world=world)
    draw = np.random.default_rng(0)
    losses, seconds = [], []
    for i in range(options.steps):
        # Low ids are frequent, and the model learns that quickly. The losses fall, so a wrong update shows.
        tokens = (config.vocab_size * draw.random((options.rows, config.sequence_len + 1)) ** 4).astype(np.int32)
        mine = tokens[rank :: options.processes]
        elsewhere = (options.rows - len(mine)) * config.sequence_len
        batch = Batch(mine[:, :-1].copy(), mine[:, 1:].copy(), elsewhere_tokens=elsewhere)
        began = time.perf_counter()
        # The learning rate rises until the end, so that rounding errors grow more slowly.
        rates = Rates(lr_multiplier=(i + 1) / options.steps, momentum=0.95, weight_decay=0.0)
        result = step.run(batch, rates=rates, votes=lambda: [False])
        mx.eval(result.loss, model.named_parameters(), step.optimizer.arrays)
        mx.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(float(result.loss))
    if rank == 0:
        tokens_per_second = options.rows * config.sequence_len / statistics.median(seconds[WARM_UP:])
        peak = peak_flops(device_name(), chosen.dtype) if chosen.backend != "cpu" else None
        measured = {
            "losses": losses,
            "tokens_per_second": tokens_per_second,
            "spread": [min(seconds[WARM_UP:]), max(seconds[WARM_UP:])],
            "dtype": chosen.dtype,
            "device": describe_machine(chosen),
            "parameters": config.num_parameters(),
            "peak_gib": mx.get_peak_memory() / 2**30,
            "mfu": tokens_per_second * config.flops_per_token() / (peak * options.processes) if peak else None,
        }
        Path(options.out).write_text(json.dumps(measured))


def measure(options: argparse.Namespace, *, processes: int, rows: int, micro: int) -> dict[str, Any]:
    """Run one or more worker processes and return their measurements."""
    execution = ExecutionSpec(device=options.device, processes=processes, collectives=options.backend)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, __file__, "--work", "--out", str(out), "--device", options.device]
        command += ["--rows", str(rows), "--micro", str(micro), "--steps", str(options.steps)]
        command += ["--processes", str(processes), "--backend", backend_of(execution)]
        if processes > 1:
            launch = str(Path(sys.executable).parent / "mlx.launch")
            command = [launch, *launch_options(execution), "--", *command]
        run(command)
        measured: dict[str, Any] = json.loads(out.read_text())
        return measured


def run(command: list[str]) -> None:
    """Run a command to its end. Writing to its input lets the launcher notice that its processes closed theirs."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    try:
        while process.poll() is None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(b"\n")
                process.stdin.flush()
            time.sleep(0.2)
            if time.monotonic() - began > TIMEOUT_SECONDS:
                raise SystemExit(f"not done after {TIMEOUT_SECONDS:.0f} s: {' '.join(command)}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


def show(title: str, measured: dict[str, Any]) -> None:
    low, high = measured["spread"]
    mfu = f", MFU {measured['mfu']:.1%}" if measured["mfu"] is not None else ""
    print(
        f"{title}: {measured['tokens_per_second']:,.0f} tokens/s{mfu}, "
        f"steps of {1e3 * low:.0f} to {1e3 * high:.0f} ms, peak {measured['peak_gib']:.2f} GiB per process",
        flush=True,
    )


def main() -> int:
    parser = option_parser(__doc__, processes=2, steps=12)
    parser.add_argument("--backend", default="auto", choices=["auto", "ring", "nccl", "mpi"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "gpu"])
    parser.add_argument("--rows", type=int, help="rows per step and process")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    parser.add_argument("--micro", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return 0
    on_gpu = options.device != "cpu" and runtime.backend_of_machine() != "cpu"
    rows, many = options.rows or (16 if on_gpu else 8), options.processes
    alone = measure(options, processes=1, rows=many * rows, micro=rows)
    print(f"{alone['device']}; {alone['parameters']:,} parameters; {many * rows} rows per step", flush=True)
    show(f"1 process, {many} micro-batches", alone)
    if on_gpu:
        show(f"1 process, steps of {rows} rows", measure(options, processes=1, rows=rows, micro=rows))
    together = measure(options, processes=many, rows=many * rows, micro=rows)
    show(f"{many} processes", together)
    print(
        f"{together['tokens_per_second'] / alone['tokens_per_second']:.2f}x the speed of one process on the same steps"
    )
    differences = [abs(a - b) for a, b in zip(alone["losses"], together["losses"], strict=True)]
    first, later = FIRST_BOUND[alone["dtype"]], LATER_BOUND[alone["dtype"]]
    ends = f"{alone['losses'][-1]:.4f} and {together['losses'][-1]:.4f}"
    print(f"loss {alone['losses'][0]:.4f} at the first step, difference {differences[0]:.1e} (bound {first:.0e})")
    print(f"losses {ends} at step {len(differences)}, largest difference {max(differences):.1e} (bound {later:.0e})")
    return int(differences[0] > first or max(differences) > later)


if __name__ == "__main__":
    sys.exit(main())
