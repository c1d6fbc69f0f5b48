"""Training speed on a GPU at the real size: 286M parameters in bfloat16, 16 rows of 2,048 random tokens per step.

    python tests/benchmarks/gpu_train.py [--text DIR] [--steps 20] [--rows 16] [--compare-steps 50] [--compare-only]

Prints, for the window patterns L and SSSL: tokens per second (medians over steps after the warm-up, once with steps
that overlap as in training and once with every step waited for), peak memory, MFU by the plan's formula, the time to
the first step, and the time of each part of a step alone. With `--text`, a folder of parquet shards, it also compares
the losses of the kernels in bfloat16 with those of the plain forms in float32 (see `training/gpu_losses.py`), and exits
with 1 if they differ by more than the rounding of bfloat16 explains.
"""

from __future__ import annotations

import time

BEGIN = time.perf_counter()

import itertools  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from nanochat import runtime  # noqa: E402

CHOSEN = runtime.prepare()
runtime.set_environment("MLX_ENABLE_TF32", "0")  # for the comparison in float32; bfloat16 does not use it

import mlx.core as mx  # noqa: E402
from measuring import describe_machine, median_and_range, option_parser, training_step  # noqa: E402
from training import gpu_losses  # noqa: E402

from nanochat.data.loaders.batches import Batch  # noqa: E402
from nanochat.model import device, loss  # noqa: E402
from nanochat.model.config import GPTConfig  # noqa: E402
from nanochat.model.cuda import softcap_loss  # noqa: E402
from nanochat.model.dispatch import FastGPT  # noqa: E402
from nanochat.train.step import NamedArrays, Rates, TrainStep  # noqa: E402

RATES = Rates(lr_multiplier=1.0, momentum=0.95, weight_decay=0.0)
PEERS = "PyTorch nanochat, compiled: 454k tokens/s, 14.8 GiB; the seed's port to MLX: 66k, 67.7 GiB (same GPU type)"


def random_rows(rows: int, config: GPTConfig, count: int) -> list[Batch]:
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, config.vocab_size, (count, 2, rows, config.sequence_len), dtype=np.int32)
    return [Batch(inputs, targets) for inputs, targets in tokens]


def waited(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    mx.eval(function())
    mx.synchronize()
    return time.perf_counter() - begin


def measure_speed(pattern: str, *, rows: int, steps: int) -> None:
    config = GPTConfig(window_pattern=pattern, sequence_len=2048)
    step = training_step(FastGPT(config), rows=rows, dtype="bfloat16")
    batches = random_rows(rows, config, 4)
    first = float(step.run(batches[0], rates=RATES).loss)
    print(f"\nwindows {pattern}: first loss {first:.4f} after {time.perf_counter() - BEGIN:.1f} s of this process")
    for i in range(4):
        step.run(batches[i % 4], rates=RATES)
    mx.synchronize()
    mx.reset_peak_memory()
    overlapped = overlapped_steps(step, batches, steps)
    singles = [waited(partial(lambda batch: step.run(batch, rates=RATES).loss, batches[i % 4])) for i in range(steps)]
    peak = device.peak_flops(device.device_name(), "bfloat16")
    for name, times in (("as in training", overlapped), ("each step waited for", singles)):
        rate = rows * config.sequence_len / statistics.median(times)
        mfu = f", MFU {rate * config.flops_per_token() / peak:.1%}" if peak else ""
        spread = median_and_range([1e3 * x for x in times], 1)
        print(f"  {name}: {spread} ms, mean {1e3 * statistics.mean(times):.1f}, {rate:,.0f} tokens/s{mfu}")
    peak_gib, held_gib = mx.get_peak_memory() / 2**30, mx.get_active_memory() / 2**30
    print(f"  peak memory {peak_gib:.1f} GiB, of which weights and moments {held_gib:.1f} GiB")
    measure_parts(step, batches[0])


def overlapped_steps(step: TrainStep, batches: list[Batch], steps: int) -> list[float]:
    """Return the seconds between the ends of consecutive steps. Each is built while the previous one is computed."""
    ends = []
    for i in range(steps + 2):  # `run` waits for the previous step, so the first call returns at once
        step.run(batches[i % len(batches)], rates=RATES)
        ends.append(time.perf_counter())
    mx.synchronize()
    return [end - begin for begin, end in itertools.pairwise(ends[1:])]


def measure_parts(step: TrainStep, batch: Batch) -> None:
    """Print the time of the forward pass, the loss, the gradients and the update, each measured alone."""
    model, optimizer = step.model, step.optimizer
    parameters = model.named_parameters()
    working = {name: x.astype(mx.bfloat16) if x.ndim > 1 else x for name, x in parameters.items()}
    inputs, targets = mx.array(batch.inputs), mx.array(batch.targets)
    mx.eval(working, inputs, targets)

    def hidden() -> mx.array:
        model.set_parameters(working)
        return model.hidden(inputs)

    def forward_and_backward() -> tuple[mx.array, NamedArrays]:
        return step._micro_step(working, inputs, targets, mx.array(1e-5))

    def head_loss() -> tuple[mx.array, tuple[mx.array, mx.array]]:
        rows = mx.ones((inputs.size, model.config.n_embd), mx.bfloat16)
        weight = working["lm_head.weight"]
        summed = loss.chunked_sum(softcap_loss.KERNELS, model.config.vocab_size)
        return mx.value_and_grad(lambda r, w: summed(r, w, targets.reshape(-1))[0], argnums=(0, 1))(rows, weight)

    gradients = forward_and_backward()[1]
    mx.eval(gradients)
    model.set_parameters(parameters)
    state = dict(optimizer.state)

    def update() -> NamedArrays:
        optimizer.load_state(state)
        return optimizer.update(
            parameters, gradients, lr_multiplier=0.0, momentum=0.95, weight_decay=0.0, is_finite=mx.array(True)
        )

    parts = {"forward": hidden, "loss": head_loss, "forward, loss and backward": forward_and_backward, "update": update}
    times = {name: statistics.median(waited(part) for _ in range(6)) for name, part in parts.items()}
    print("  alone: " + ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items()))
    model.set_parameters(parameters)


def main() -> int:
    parser = option_parser(__doc__, steps=20, rows=16, compare_steps=50)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--compare-only", action="store_true", help="do not measure speed")
    options = parser.parse_args()
    print(f"{describe_machine(CHOSEN)}; Python {sys.version.split()[0]}")
    print(f"{GPTConfig().num_parameters():,} parameters, {options.rows} x 2,048 random tokens per step. {PEERS}")
    for pattern in () if options.compare_only else ("L", "SSSL"):
        measure_speed(pattern, rows=options.rows, steps=options.steps)
        mx.clear_cache()
    if options.text is None:
        return 0
    is_same = gpu_losses.agree(options.text, steps=options.compare_steps)
    return 0 if is_same else 1


if __name__ == "__main__":
    raise SystemExit(main())
