"""Training speed and memory on a GPU at the real size: 286M parameters in bfloat16, rows of 2,048 random tokens.

    python tests/benchmarks/gpu_train.py [--peer DIR] [--text DIR] [--steps 20] [--rounds 3] [--rows 16]
                                         [--micro-batches 1] [--architecture seed] [--compare-steps 50] [--compare-only]

Prints, for the window patterns L and SSSL: tokens per second (medians over steps after the warm-up, once with steps
that overlap as in training and once with every step waited for), peak memory, MFU by the plan's formula, the time to
the first step, and time and memory of each part of a step alone. A step has `--micro-batches` passes of `--rows` rows.

With `--peer`, a folder of karpathy/nanochat, PyTorch nanochat trains on the same GPU in a process of its own, in turns
with this, `--rounds` times, and the ratio is printed. With `--text`, a folder of parquet shards, the losses of the
kernels in bfloat16 are compared with those of the plain forms in float32 (see `parts/gpu_losses.py`); the script
exits with 1 if they differ by more than the rounding of bfloat16 explains.
"""

from __future__ import annotations

import time

BEGIN = time.perf_counter()

import argparse  # noqa: E402
import itertools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from nanochat import runtime  # noqa: E402

CHOSEN = runtime.prepare(trains=True)
runtime.set_environment("MLX_ENABLE_TF32", "0")  # for the comparison in float32; bfloat16 does not use it

import mlx.core as mx  # noqa: E402
from parts import gpu_losses  # noqa: E402
from parts.gpu_step_parts import measure_parts  # noqa: E402
from parts.measuring import describe_machine, median_and_range, option_parser, seconds, training_step  # noqa: E402

from nanochat.data.loaders.batches import Batch  # noqa: E402
from nanochat.model import device  # noqa: E402
from nanochat.model.config import GPTConfig  # noqa: E402
from nanochat.model.dispatch import FastGPT  # noqa: E402
from nanochat.train.step import Rates, TrainStep  # noqa: E402

RATES = Rates(lr_multiplier=1.0, momentum=0.95, weight_decay=0.0)
GIB = 2**30


def random_rows(rows: int, config: GPTConfig, count: int) -> list[Batch]:
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, config.vocab_size, (count, 2, rows, config.sequence_len), dtype=np.int32)
    return [Batch(inputs, targets) for inputs, targets in tokens]


def measure_speed(pattern: str, options: argparse.Namespace, peer: Peer | None) -> None:
    config = GPTConfig(window_pattern=pattern, sequence_len=2048, architecture=options.architecture)
    rows = options.rows * options.micro_batches
    step = training_step(FastGPT(config), rows=rows, micro_batch_size=options.rows, dtype="bfloat16")
    batches = random_rows(rows, config, 4)
    first = float(step.run(batches[0], rates=RATES).loss)
    print(f"\nwindows {pattern}: first loss {first:.4f} after {time.perf_counter() - BEGIN:.1f} s of this process")
    overlapped_steps(step, batches, 4)
    mx.reset_peak_memory()
    overlapped = overlapped_steps(step, batches, options.steps)
    peak_gib = mx.get_peak_memory() / GIB
    report("as in training", overlapped, config, rows)
    print(f"  peak memory {peak_gib:.2f} GiB, of which weights and moments {mx.get_active_memory() / GIB:.2f} GiB")
    if peer is not None:
        compare_with_peer(peer, options, partial(overlapped_steps, step, batches, options.steps), overlapped)
    singles = [seconds(partial(run_and_wait, step, batches[i % len(batches)])) for i in range(options.steps)]
    report("each step waited for", singles, config, rows)
    for part in measure_parts(step, Batch(batches[0].inputs[: options.rows], batches[0].targets[: options.rows])):
        sizes = f"{part.peak_bytes / GIB:.2f} GiB at its peak, {part.result_bytes / GIB:.2f} GiB left"
        print(f"  {part.name} alone: {1e3 * part.seconds:.1f} ms, {sizes}")


def run_and_wait(step: TrainStep, batch: Batch) -> None:
    mx.eval(step.run(batch, rates=RATES).loss)
    mx.synchronize()


def overlapped_steps(step: TrainStep, batches: list[Batch], steps: int) -> list[float]:
    """Return the seconds between the ends of consecutive steps. Each is built while the previous one is computed."""
    ends = []
    for i in range(steps + 2):  # `run` waits for the previous step, so the first call returns at once
        step.run(batches[i % len(batches)], rates=RATES)
        ends.append(time.perf_counter())
    mx.synchronize()
    return [end - begin for begin, end in itertools.pairwise(ends[1:])]


def report(name: str, times: Sequence[float], config: GPTConfig, rows: int) -> None:
    rate = rows * config.sequence_len / statistics.median(times)
    peak = device.peak_flops(device.device_name(), "bfloat16")
    mfu = f", MFU {rate * config.flops_per_token() / peak:.1%}" if peak else ""
    spread = median_and_range([1e3 * x for x in times], 1)
    print(f"  {name}: {spread} ms, mean {1e3 * statistics.mean(times):.1f}, {rate:,.0f} tokens/s{mfu}", flush=True)


class Peer:
    """PyTorch nanochat in a process of its own, which compiles its model while this process does other work."""

    def __init__(self, pattern: str, options: argparse.Namespace) -> None:
        script = Path(__file__).parent / "parts" / "gpu_peer.py"
        numbers = map(str, (options.rows, options.micro_batches, options.steps))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(options.peer.resolve()), *sys.path[1:]])}
        command = [sys.executable, str(script), pattern, *numbers]
        self._process = subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.first_seconds = 0.0

    def wait(self) -> None:
        """Wait until it has compiled its model."""
        self.first_seconds = float(self._next_line("0123456789"))

    def measure(self) -> dict[str, Any]:
        """Return its measurements."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        result: dict[str, Any] = json.loads(self._next_line("{"))
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _next_line(self, begins: str) -> str:
        """Return the next line that begins with one of these characters: the peer prints others, too."""
        assert self._process.stdout is not None
        return next(line for line in self._process.stdout if line[0] in begins)


def compare_with_peer(
    peer: Peer, options: argparse.Namespace, measure_again: Callable[[], list[float]], before: list[float]
) -> None:
    """Measure PyTorch nanochat and then ours, for some rounds, and print both and their ratio over all rounds."""
    ours, theirs, peaks = before, list[float](), list[int]()
    for _ in range(options.rounds):
        its, again = peer.measure(), measure_again()
        theirs, ours, peaks = theirs + its["seconds"], ours + again, [*peaks, its["peak_bytes"]]
        print(f"    round: {compare(again, its['seconds'])}", flush=True)
    rate = options.rows * options.micro_batches * 2048 / statistics.median(theirs)
    print(
        f"  PyTorch nanochat ({its['describe']}): {median_and_range([1e3 * x for x in theirs], 1)} ms, "
        f"{rate:,.0f} tokens/s, first step after {peer.first_seconds:.0f} s\n"
        f"  its peak memory {max(peaks) / GIB:.2f} GiB, of which held {its['held_bytes'] / GIB:.2f} GiB\n"
        f"  all rounds: {compare(ours, theirs)}",
        flush=True,
    )


def compare(ours: Sequence[float], theirs: Sequence[float]) -> str:
    ratios = (f"{statistic(theirs) / statistic(ours):.3f}" for statistic in (statistics.median, statistics.mean))
    spread = " and ".join(median_and_range([1e3 * x for x in times], 1) for times in (ours, theirs))
    return f"{spread} ms, {' times the speed of the peer, by means '.join(ratios)}"


def main() -> int:
    parser = option_parser(__doc__, steps=20, rounds=3, rows=16, micro_batches=1, compare_steps=50)
    parser.add_argument("--architecture", choices=("seed", "current", "portable"), default="seed")
    parser.add_argument("--patterns", nargs="+", default=["L", "SSSL"])
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--compare-only", action="store_true", help="do not measure speed")
    options = parser.parse_args()
    print(f"{describe_machine(CHOSEN)}; Python {sys.version.split()[0]}")
    config = GPTConfig(architecture=options.architecture, window_pattern="L")
    print(f"{config.num_parameters():,} parameters, {options.micro_batches} x {options.rows} x 2,048 tokens per step")
    patterns = [] if options.compare_only else options.patterns
    peers = {pattern: Peer(pattern, options) for pattern in patterns if options.peer is not None}
    try:
        for peer in peers.values():
            peer.wait()
        for pattern in patterns:
            measure_speed(pattern, options, peers.get(pattern))
            mx.clear_cache()
    finally:
        for peer in peers.values():
            peer.close()
    if options.text is None:
        return 0
    return 0 if gpu_losses.agree(options.text, steps=options.compare_steps) else 1


if __name__ == "__main__":
    raise SystemExit(main())
