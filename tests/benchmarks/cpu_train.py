"""Training speed on a CPU: the plain forms of attention and loss, compared with those written for the CPU.

    python tests/benchmarks/cpu_train.py [--rounds 5] [--steps 4]

Both train the same model in alternation: 4 layers, width 128, vocabulary 2,048, 16 rows of 256 random tokens. Prints,
for each, tokens per CPU second (median and range over the rounds) and MLX's peak memory; then the ratio within each
round (median and range) and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

from nanochat import runtime

CHOSEN = runtime.prepare(device="cpu")

import mlx.core as mx  # noqa: E402
from mlx.nn.utils import value_and_grad  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from nanochat.model.config import GPTConfig  # noqa: E402
from nanochat.model.dispatch import FastGPT, summed_loss  # noqa: E402
from nanochat.model.gpt import GPT  # noqa: E402
from nanochat.model.loss import plain_losses  # noqa: E402
from nanochat.optim.groups import OptimizerConfig, build_groups  # noqa: E402
from nanochat.optim.optimizer import Optimizer  # noqa: E402

ROWS = 16
CONFIG = GPTConfig(n_layer=4, n_embd=128, n_head=2, n_kv_head=2, vocab_size=2048, sequence_len=256)
TOKENS = ROWS * CONFIG.sequence_len


def plain_loss(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    return plain_losses(model(idx), targets).sum()


class Training:
    def __init__(self, model: GPT, loss: Callable[[GPT, mx.array, mx.array], mx.array]) -> None:
        self.model, self.loss = model, loss
        self.model.initialise(mx.random.key(0))
        groups = build_groups(CONFIG, OptimizerConfig(), tokens_per_step=TOKENS)
        self.optimizer = Optimizer(groups, self.model.named_parameters())
        shape = (ROWS, CONFIG.sequence_len)
        self.batch = tuple(mx.random.randint(0, CONFIG.vocab_size, shape, key=mx.random.key(i)) for i in (1, 2))

    def step(self) -> None:
        function = value_and_grad(self.model, lambda *batch: self.loss(self.model, *batch) / TOKENS)
        value, tree = function(*self.batch)
        updated = self.optimizer.update(
            self.model.named_parameters(), dict(tree_flatten(tree)), lr_multiplier=0.1, momentum=0.95, weight_decay=0.0
        )
        self.model.set_parameters(updated)
        mx.eval(value, updated, self.optimizer.state)


def rate(training: Training, steps: int) -> tuple[float, int]:
    """Return tokens per CPU second and MLX's peak bytes over `steps` steps, after one step of warm-up."""
    training.step()
    mx.reset_peak_memory()
    begin = time.process_time()
    for _ in range(steps):
        training.step()
    return steps * TOKENS / (time.process_time() - begin), mx.get_peak_memory()


def median_and_range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.2f} ({min(values):,.2f} to {max(values):,.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    print(f"{CHOSEN.describe()}; MLX {version('mlx')}; {CONFIG.num_parameters():,} parameters")
    trainings = {"plain": Training(GPT(CONFIG), plain_loss), "fast": Training(FastGPT(CONFIG), summed_loss)}
    rates: dict[str, list[float]] = {name: [] for name in trainings}
    peaks: dict[str, int] = {}
    for _ in range(options.rounds):
        for name, training in trainings.items():
            tokens_per_second, peaks[name] = rate(training, options.steps)
            rates[name].append(tokens_per_second)
    for name, values in rates.items():
        print(f"{name}: {median_and_range(values)} tokens per CPU second, MLX's peak {peaks[name] / 2**20:,.0f} MiB")
    print(f"fast / plain: {median_and_range([fast / plain for plain, fast in zip(*rates.values(), strict=True)])}")
    print(f"peak of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
