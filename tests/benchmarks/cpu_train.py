"""Training speed on a CPU: the plain forms of attention and loss, compared with those written for the CPU.

    python tests/benchmarks/cpu_train.py [--rounds 5] [--steps 4]

Both train the same model in alternation: 4 layers, width 128, vocabulary 2,048, 16 rows of 256 random tokens. Prints,
for each, tokens per CPU second (median and range over the rounds) and MLX's peak memory; then the ratio within each
round (median and range) and the peak memory of the process.
"""

from __future__ import annotations

import resource
import time
from unittest import mock

from measuring import describe_machine, median_and_range, option_parser, seconds, training_step

from nanochat import runtime

CHOSEN = runtime.prepare(device="cpu")

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from nanochat.data.loaders.batches import Batch  # noqa: E402
from nanochat.model.config import GPTConfig  # noqa: E402
from nanochat.model.dispatch import FastGPT  # noqa: E402
from nanochat.model.gpt import GPT  # noqa: E402
from nanochat.model.loss import plain_losses  # noqa: E402
from nanochat.train import step as train_step  # noqa: E402

ROWS = 16
CONFIG = GPTConfig(n_layer=4, n_embd=128, n_head=2, n_kv_head=2, vocab_size=2048, sequence_len=256)
TOKENS = ROWS * CONFIG.sequence_len
RATES = train_step.Rates(lr_multiplier=0.1, momentum=0.95, weight_decay=0.0)
BATCH = Batch(*np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, ROWS, CONFIG.sequence_len), dtype=np.int32))


def plain_loss(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    return plain_losses(model(idx), targets).sum()


def rate(step: train_step.TrainStep, steps: int) -> tuple[float, int]:
    """Return tokens per CPU second and MLX's peak bytes over `steps` steps, after one step of warm-up."""
    step.run(BATCH, rates=RATES)
    mx.reset_peak_memory()
    elapsed = seconds(lambda: [step.run(BATCH, rates=RATES) for _ in range(steps)], clock=time.process_time)
    return steps * TOKENS / elapsed, mx.get_peak_memory()


def main() -> None:
    options = option_parser(__doc__, rounds=5, steps=4).parse_args()
    print(f"{describe_machine(CHOSEN)}; {CONFIG.num_parameters():,} parameters")
    plain, fast = (training_step(model, rows=ROWS) for model in (GPT(CONFIG), FastGPT(CONFIG)))
    rates: dict[str, list[float]] = {"plain": [], "fast": []}
    peaks: dict[str, int] = {}
    for _ in range(options.rounds):
        with mock.patch.object(train_step, "summed_loss", plain_loss):
            tokens_per_second, peaks["plain"] = rate(plain, options.steps)
        rates["plain"].append(tokens_per_second)
        tokens_per_second, peaks["fast"] = rate(fast, options.steps)
        rates["fast"].append(tokens_per_second)
    for name, values in rates.items():
        print(f"{name}: {median_and_range(values)} tokens per CPU second, MLX's peak {peaks[name] / 2**20:,.0f} MiB")
    print(f"fast / plain: {median_and_range([fast / plain for plain, fast in zip(*rates.values(), strict=True)])}")
    print(f"peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
