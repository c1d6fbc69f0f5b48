"""Training on several processes beside one: tokens a second, and that the losses are the same.

Run: python tests/benchmarks/distributed.py [--processes 2] [--backend auto] [--device auto] [--steps 12] [--rows R]

A step has `--rows` rows for each process (GPU: 16 rows of 2,048 tokens at 286M parameters; CPU: 8 of 256 at the
quickstart's size), the update included. One process does the same steps alone, in as many micro-batches; on a GPU also
steps of one process's rows, which is what a single card would be used for. Times are medians of steps that each were
waited for, so that all is counted that a step costs; losses are of the first steps, from the same weights on the same
tokens. It exits with 1 where losses differ by more than the bounds below.
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

import numpy as np

from nanochat import runtime
from nanochat.data.loaders.pretrain import Batch
from nanochat.model.config import GPTConfig
from nanochat.plan.specs import ExecutionSpec
from nanochat.runner.process.hosts import backend_of, launch_options

FIRST_BOUND = {"float32": 1e-5, "bfloat16": 2e-3}
"""Nats between the losses of the first step: the weights are the same, and only sums are in another order."""
LATER_BOUND = {"float32": 5e-3, "bfloat16": 0.1}
"""Nats between the losses of any step: Muon and Adam make whole steps of the smallest gradients, so rounding grows."""
CPU_CONFIG = GPTConfig(
    sequence_len=256, vocab_size=2048, n_layer=4, n_head=2, n_kv_head=2, n_embd=128, window_pattern="L"
)
WARM_UP = 3
TIMEOUT_SECONDS = 240.0


def work(options: argparse.Namespace) -> None:
    """Train as one of `--processes`; the first writes what it measured to `--out`."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())  # the launcher spins while it is open
    chosen = runtime.prepare(device=options.device)
    import mlx.core as mx

    from nanochat.model.device import device_name, peak_flops, select_device
    from nanochat.model.gpt import GPT
    from nanochat.optim.groups import OptimizerConfig, build_groups
    from nanochat.optim.optimizer import Optimizer
    from nanochat.train.step import Rates, TrainStep

    select_device(chosen.backend)
    world = None
    if options.processes > 1:
        world = mx.distributed.init(strict=True, backend=options.backend)
        assert world.size() == options.processes, f"{world.size()} processes, not {options.processes}"
    rank = 0 if world is None else world.rank()
    config = CPU_CONFIG if chosen.backend == "cpu" else GPTConfig(sequence_len=2048)
    model = GPT(config)
    model.initialise(mx.random.key(0))
    model.set_compute_dtype(mx.bfloat16 if chosen.dtype == "bfloat16" else mx.float32)
    groups = build_groups(config, OptimizerConfig(), tokens_per_step=options.rows * config.sequence_len)
    optimizer = Optimizer(groups, model.named_parameters(), world=world)
    step = TrainStep(model, optimizer, micro_batch_size=options.micro, world=world)
    draw = np.random.default_rng(0)
    losses, seconds = [], []
    for i in range(options.steps):
        # Low ids are frequent, which is quickly learned: the losses fall, so that an update that is wrong shows.
        tokens = (config.vocab_size * draw.random((options.rows, config.sequence_len + 1)) ** 4).astype(np.int32)
        mine = tokens[rank :: options.processes]
        elsewhere = (options.rows - len(mine)) * config.sequence_len
        batch = Batch(mine[:, :-1].copy(), mine[:, 1:].copy(), elsewhere_tokens=elsewhere)
        began = time.perf_counter()
        # The rate warms up to the end: rounding, which whole steps of tiny gradients blow up, stays small for longer.
        rates = Rates(lr_multiplier=(i + 1) / options.steps, momentum=0.95, weight_decay=0.0)
        result = step.run(batch, rates=rates, votes=lambda: [False])
        mx.eval(result.loss, model.named_parameters(), optimizer.state)
        mx.synchronize()
        seconds.append(time.perf_counter() - began)
        losses.append(float(result.loss))
    if rank == 0:
        tokens_per_second = options.rows * config.sequence_len / statistics.median(seconds[WARM_UP:])
        peak = peak_flops(device_name(), chosen.dtype) if chosen.backend != "cpu" else None
        found = {
            "losses": losses,
            "tokens_per_second": tokens_per_second,
            "spread": [min(seconds[WARM_UP:]), max(seconds[WARM_UP:])],
            "dtype": chosen.dtype,
            "device": f"{device_name() if chosen.backend != 'cpu' else 'CPU'}, {chosen.dtype}, MLX {mx.__version__}",
            "parameters": config.num_parameters(),
            "peak_gib": mx.get_peak_memory() / 2**30,
            "mfu": tokens_per_second * config.flops_per_token() / (peak * options.processes) if peak else None,
        }
        Path(options.out).write_text(json.dumps(found))


def measure(options: argparse.Namespace, *, processes: int, rows: int, micro: int) -> dict:
    """Return what a worker, or several, measured."""
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
        return json.loads(out.read_text())


def run(command: list[str]) -> None:
    """Run a command to its end; a key pressed now and then lets the launcher find its processes' inputs closed."""
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


def show(title: str, found: dict) -> None:
    low, high = found["spread"]
    mfu = f", MFU {found['mfu']:.1%}" if found["mfu"] is not None else ""
    print(
        f"{title}: {found['tokens_per_second']:,.0f} tokens/s{mfu}, steps of {1e3 * low:.0f} to {1e3 * high:.0f} ms, "
        f"peak {found['peak_gib']:.2f} GiB a process",
        flush=True,
    )


def main() -> int:
    """Measure, compare, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--backend", default="auto", choices=["auto", "ring", "nccl", "mpi"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "gpu"])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, help="rows of a step for each process")
    for hidden in ("--work", "--out", "--micro"):
        parser.add_argument(hidden, help=argparse.SUPPRESS, **({"action": "store_true"} if hidden == "--work" else {}))
    options = parser.parse_args()
    if options.work:
        options.micro = int(options.micro)
        work(options)
        return 0
    on_gpu = options.device != "cpu" and runtime.backend_of_machine() != "cpu"
    own, many = options.rows or (16 if on_gpu else 8), options.processes
    alone = measure(options, processes=1, rows=many * own, micro=own)
    print(f"{alone['device']}; {alone['parameters']:,} parameters; {many * own} rows a step", flush=True)
    show(f"1 process, {many} micro-batches", alone)
    if on_gpu:
        show(f"1 process, steps of {own} rows", measure(options, processes=1, rows=own, micro=own))
    together = measure(options, processes=many, rows=many * own, micro=own)
    show(f"{many} processes", together)
    print(f"{together['tokens_per_second'] / alone['tokens_per_second']:.2f}x of one process doing the same steps")
    apart = [abs(a - b) for a, b in zip(alone["losses"], together["losses"], strict=True)]
    first, later = FIRST_BOUND[alone["dtype"]], LATER_BOUND[alone["dtype"]]
    ends = f"{alone['losses'][-1]:.4f} and {together['losses'][-1]:.4f}"
    print(f"loss {alone['losses'][0]:.4f} at the first step, apart {apart[0]:.1e} (bound {first:.0e})")
    print(f"losses {ends} at step {len(apart)}, apart at most {max(apart):.1e} on the way (bound {later:.0e})")
    return int(apart[0] > first or max(apart) > later)


if __name__ == "__main__":
    sys.exit(main())
