"""Training on a GPU at the real size: 286M parameters, B=16 rows of T=2,048 random tokens, bfloat16.

Run: python tests/benchmarks/gpu_train.py [--text DIR] [--steps 20] [--rows 16] [--compare-steps 50]

Prints, for windows L and SSSL, tokens a second (medians of steps after warm-up: overlapping as in training, and each
ended by waiting for the device), peak memory, MFU by the plan's formula, the time to the first step
and what the parts of a step take alone. With `--text`, a folder of parquet shards, losses of the fast path in bfloat16
beside those of the plain forms in float32 over the same steps of real text, the learning rate warming up; it exits
with 1 where they differ by more than the bounds below.
"""

from __future__ import annotations

import time

BEGIN = time.perf_counter()

import argparse  # noqa: E402
import datetime  # noqa: E402
import itertools  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import ExitStack, contextmanager  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from unittest import mock  # noqa: E402

import numpy as np  # noqa: E402

from nanochat import runtime  # noqa: E402

CHOSEN = runtime.prepare()
runtime.set_environment("MLX_ENABLE_TF32", "0")  # for the comparison in float32; bfloat16 does not use it

import mlx.core as mx  # noqa: E402

from nanochat.model import device, loss  # noqa: E402
from nanochat.model.config import GPTConfig  # noqa: E402
from nanochat.model.gpt import GPT  # noqa: E402
from nanochat.model.kernels import forward  # noqa: E402
from nanochat.optim import fused_adamw, fused_muon  # noqa: E402
from nanochat.optim.groups import OptimizerConfig, build_groups  # noqa: E402
from nanochat.optim.optimizer import Optimizer  # noqa: E402
from nanochat.train.step import Rates, TrainStep  # noqa: E402

FIRST_BOUND, LATER_BOUND = 0.002, 0.1
"""Bounds on the distance of the fast path from plain float32, in nats: at the first step, and of the mean over the last
half of the steps.

At the first step the weights are the same and only one forward pass is rounded, at 2^-9 a value. Then the runs walk
apart: Adam and Muon make whole steps of the smallest gradients, so a sign that rounding flips is a step the other way,
while the loss falls by up to 0.5 nats a step. The plain forms in bfloat16 are printed beside: with the full learning
rate from the start they alone were 0.06 away over the last half.
"""
RATES = Rates(lr_multiplier=1.0, momentum=0.95, weight_decay=0.0)
PEERS = "PyTorch nanochat, compiled: 454k tokens/s, 14.8 GiB; the seed's port to MLX: 66k, 67.7 GiB (same GPU type)"


@dataclass(frozen=True)
class Rows:
    inputs: np.ndarray
    targets: np.ndarray
    elsewhere_tokens: int = 0


class Training:
    """A model in training from fixed weights."""

    def __init__(self, pattern: str, *, rows: int, dtype: mx.Dtype, sequence_len: int = 2048) -> None:
        self.config = GPTConfig(window_pattern=pattern, sequence_len=sequence_len)
        self.model = GPT(self.config)
        self.model.initialise(mx.random.key(0))
        self.model.set_compute_dtype(dtype)
        mx.eval(self.model.parameters())
        tokens = rows * sequence_len
        groups = build_groups(self.config, OptimizerConfig(), tokens_per_step=tokens)
        self.optimizer = Optimizer(groups, self.model.named_parameters())
        self.step = TrainStep(self.model, self.optimizer, micro_batch_size=rows)

    def run(self, batch: Rows):
        return self.step.run(batch, rates=RATES)


def random_rows(rows: int, config: GPTConfig, count: int) -> list[Rows]:
    draw = np.random.default_rng(0)
    shape = (rows, config.sequence_len)
    return [Rows(*(draw.integers(0, config.vocab_size, shape, dtype=np.int32) for _ in range(2))) for _ in range(count)]


def waited(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    mx.eval(function())
    mx.synchronize()
    return time.perf_counter() - begin


def measure_speed(pattern: str, *, rows: int, steps: int) -> None:
    training = Training(pattern, rows=rows, dtype=mx.bfloat16)
    batches = random_rows(rows, training.config, 4)
    tokens = rows * training.config.sequence_len
    first = float(training.run(batches[0]).loss)
    print(f"\nwindows {pattern}: first loss {first:.4f} after {time.perf_counter() - BEGIN:.1f} s of this process")
    for i in range(4):
        training.run(batches[i % 4])
    mx.synchronize()
    mx.reset_peak_memory()
    overlapped = overlapped_steps(training, batches, steps)
    singles = [waited(lambda i=i: training.run(batches[i % 4]).loss) for i in range(steps)]
    peak = device.peak_flops(device.device_name(), "bfloat16")
    for name, times in (("as in training", overlapped), ("each step waited for", singles)):
        seconds = statistics.median(times)
        rate = tokens / seconds
        mfu = f", MFU {rate * training.config.flops_per_token() / peak:.1%}" if peak else ""
        spread = f"{1e3 * min(times):.1f} to {1e3 * max(times):.1f}, mean {1e3 * statistics.mean(times):.1f}"
        print(f"  {name}: median {1e3 * seconds:.1f} ms ({spread}), {rate:,.0f} tokens/s{mfu}")
    print(f"  peak memory {mx.get_peak_memory() / 2**30:.1f} GiB, of it weights and moments {active_gib():.1f} GiB")
    measure_parts(training, batches[0])


def overlapped_steps(training: Training, batches: list[Rows], steps: int) -> list[float]:
    """Return seconds between the ends of consecutive steps, each built while the one before is computed."""
    ends = []
    for i in range(steps + 2):  # `run` returns when the step before is done: the first call returns at once
        training.run(batches[i % len(batches)])
        ends.append(time.perf_counter())
    mx.synchronize()
    return [after - before for before, after in itertools.pairwise(ends[1:])]


def active_gib() -> float:
    return mx.get_active_memory() / 2**30


def measure_parts(training: Training, batch: Rows) -> None:
    """Print what forward, loss and gradients, and the update take alone."""
    model, step = training.model, training.step
    parameters = model.named_parameters()
    working = {name: x.astype(mx.bfloat16) if x.ndim > 1 else x for name, x in parameters.items()}
    inputs, targets = mx.array(batch.inputs), mx.array(batch.targets)
    mx.eval(working, inputs, targets)

    def hidden():
        model.set_parameters(working)
        return model.hidden(inputs)

    def both():
        return step._micro_step(working, inputs, targets, mx.array(1e-5))

    def nats():
        rows = mx.ones((inputs.size, model.config.n_embd), mx.bfloat16)
        weight = working["lm_head.weight"]
        return mx.value_and_grad(
            lambda r, w: loss.cross_entropy.summed_nats(r, w, targets.reshape(-1), vocab_size=model.config.vocab_size),
            argnums=(0, 1),
        )(rows, weight)

    gradients = both()[1]
    mx.eval(gradients)
    model.set_parameters(parameters)
    state = dict(training.optimizer.state)

    def update():
        training.optimizer.load_state(state)
        rates = {"lr_multiplier": 0.0, "momentum": 0.95, "weight_decay": 0.0}
        return training.optimizer.update(parameters, gradients, **rates, is_finite=mx.array(True))

    parts = {"forward": hidden, "loss": nats, "forward, loss and backward": both, "update": update}
    times = {name: statistics.median(waited(part) for _ in range(6)) for name, part in parts.items()}
    print("  alone: " + ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in times.items()))
    model.set_parameters(parameters)


@contextmanager
def plain_forms() -> Iterator[None]:
    """The forms without kernels, on the same device."""
    with ExitStack() as stack:
        for module in (forward, loss, fused_adamw, fused_muon):
            stack.enter_context(mock.patch.object(module, "runs_kernels", lambda: False))
        yield


def text_rows(folder: Path, *, rows: int, config: GPTConfig, count: int) -> list[Rows]:
    """Return batches of consecutive real text, in the tokens of a tokenizer trained on its beginning."""
    import pyarrow.parquet as pq

    from nanochat.tokenizer import bpe

    shards = sorted(folder.glob("*.parquet"))
    texts = pq.read_table(shards[0], columns=["text"]).column("text").to_pylist()
    tokenizer = bpe.train(texts, vocab_size=config.vocab_size, max_chars=6_000_000, max_document_chars=10_000)
    length = config.sequence_len + 1
    needed = count * rows * length
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.bos_id, *tokenizer.encode(text)]
        if len(ids) >= needed:
            break
    whole = np.array(ids[:needed], dtype=np.int32)
    batches = whole[: len(whole) // (rows * length) * rows * length].reshape(-1, rows, length)
    return [Rows(x[:, :-1].copy(), x[:, 1:].copy()) for x in batches]


def losses(batches: list[Rows], *, dtype: mx.Dtype, rows: int) -> np.ndarray:
    training = Training("SSSL", rows=rows, dtype=dtype)
    warm = [Rates(lr_multiplier=(i + 1) / len(batches), momentum=0.95, weight_decay=0.0) for i in range(len(batches))]
    return np.array([float(training.step.run(x, rates=r).loss) for x, r in zip(batches, warm, strict=True)])


def compare(folder: Path, *, steps: int, rows: int = 2) -> bool:
    """Print losses of the fast and the plain path on the same steps; return whether they agree."""
    batches = text_rows(folder, rows=rows, config=GPTConfig(), count=steps)
    fast = losses(batches, dtype=mx.bfloat16, rows=rows)
    with plain_forms():
        exact = losses(batches, dtype=mx.float32, rows=rows)
        rounded = losses(batches, dtype=mx.bfloat16, rows=rows)
    print(f"\nlosses on {len(batches)} steps of {rows} x 2,048 tokens of real text, SSSL, nats:")
    for i in range(0, len(batches), max(1, len(batches) // 10)):
        print(
            f"  step {i + 1:3d}: fast bfloat16 {fast[i]:.4f}, plain float32 {exact[i]:.4f}, {fast[i] - exact[i]:+.4f}"
        )
    half = len(batches) // 2
    for name, other in (("fast bfloat16", fast), ("plain bfloat16", rounded)):
        gap = other - exact
        print(
            f"  {name} from plain float32: first {gap[0]:+.5f}, mean |.| {np.abs(gap).mean():.4f}, "
            f"largest {np.abs(gap).max():.4f}, mean over the last half {gap[half:].mean():+.4f}"
        )
    gap = fast - exact
    agree = abs(float(gap[0])) <= FIRST_BOUND and abs(float(gap[half:].mean())) <= LATER_BOUND
    print(f"  bounds, first {FIRST_BOUND} and last half {LATER_BOUND}: {'kept' if agree else 'BROKEN'}")
    return agree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--compare-steps", type=int, default=50)
    options = parser.parse_args()
    today = datetime.date.today().isoformat()
    print(
        f"{today}; {device.device_name()}; MLX {mx.__version__}; Python {sys.version.split()[0]}; {CHOSEN.describe()}"
    )
    print(f"{GPTConfig().num_parameters():,} parameters, {options.rows} x 2,048 random tokens a step. {PEERS}")
    for pattern in ("L", "SSSL"):
        measure_speed(pattern, rows=options.rows, steps=options.steps)
        mx.clear_cache()
    return 0 if options.text is None or compare(options.text, steps=options.compare_steps) else 1


if __name__ == "__main__":
    raise SystemExit(main())
