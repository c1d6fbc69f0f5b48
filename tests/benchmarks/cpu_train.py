"""Training speed on a CPU: the plain model, the forms for the CPU, and karpathy/nanochat, which uses PyTorch.

    python tests/benchmarks/cpu_train.py [--rounds 5] [--steps 4] [--peer FOLDER [--peer-python PYTHON]]

All train a model of the quickstart's size in alternation, each on one thread: 4 layers, width 128, vocabulary 2,048,
16 rows of 256 random tokens. Prints, for each, tokens per CPU second (median and range over the rounds) and the ratio
of the forms for the CPU to it within each round; then the peak memory of this process. FOLDER holds a copy of
karpathy/nanochat, and PYTHON is an interpreter that has PyTorch (`parts/cpu_peer.py`); its model runs as it is and
with `torch.compile`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

from parts.measuring import describe_machine, median_and_range, option_parser, seconds, training_step

from nanochat import runtime

CHOSEN = runtime.prepare(device="cpu")

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from nanochat.data.loaders.batches import Batch  # noqa: E402
from nanochat.model.config import GPTConfig  # noqa: E402
from nanochat.model.device import select_device  # noqa: E402
from nanochat.model.dispatch import FastGPT  # noqa: E402
from nanochat.model.gpt import GPT  # noqa: E402
from nanochat.model.low_memory.loss import plain_losses  # noqa: E402
from nanochat.train import step as train_step  # noqa: E402

ANSWER = "seconds: "
ROWS = 16
CONFIG = GPTConfig(n_layer=4, n_embd=128, n_head=2, n_kv_head=2, vocab_size=2048, sequence_len=256)
TOKENS = ROWS * CONFIG.sequence_len
RATES = train_step.Rates(lr_multiplier=0.1, momentum=0.95, weight_decay=0.0)
BATCH = Batch(*np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, ROWS, CONFIG.sequence_len), dtype=np.int32))


def plain_loss(model: GPT, idx: mx.array, targets: mx.array) -> mx.array:
    return plain_losses(model(idx), targets).sum()


def rate(step: train_step.TrainStep, steps: int) -> float:
    """Return tokens per CPU second over `steps` steps, after one step of warm-up."""
    step.run(BATCH, rates=RATES)
    elapsed = seconds(lambda: [step.run(BATCH, rates=RATES) for _ in range(steps)], clock=time.process_time)
    return steps * TOKENS / elapsed


def plain_rate(step: train_step.TrainStep, steps: int) -> float:
    with mock.patch.object(train_step, "summed_loss", plain_loss):
        return rate(step, steps)


class Peer:
    """The process of karpathy/nanochat's model, which waits between its measurements."""

    def __init__(self, python: str, folder: str, form: str) -> None:
        fields = ("n_layer", "n_embd", "n_head", "n_kv_head", "vocab_size", "sequence_len", "window_pattern")
        shape = json.dumps({name: getattr(CONFIG, name) for name in fields})
        command = [python, str(Path(__file__).parent / "parts" / "cpu_peer.py"), folder, form, shape, str(ROWS)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def rate(self, steps: int) -> float:
        """Return its tokens per CPU second over `steps` steps."""
        assert self.process.stdin is not None and self.process.stdout is not None, "both are pipes"
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        while not (line := self.process.stdout.readline()).startswith(ANSWER):
            assert line, "the process of the peer has ended"
        return steps * TOKENS / float(line.removeprefix(ANSWER))


def main() -> None:
    parser = option_parser(__doc__, rounds=5, steps=4)
    parser.add_argument("--peer")
    parser.add_argument("--peer-python", default=sys.executable)
    options = parser.parse_args()
    select_device(CHOSEN.backend)
    print(f"{describe_machine(CHOSEN)}; {CONFIG.num_parameters():,} parameters")
    plain, fast = (training_step(model, rows=ROWS) for model in (GPT(CONFIG), FastGPT(CONFIG)))
    measure: dict[str, Callable[[int], float]] = {"plain": partial(plain_rate, plain), "fast": partial(rate, fast)}
    if options.peer is not None:
        for form in ("eager", "compiled"):
            measure[f"PyTorch {form}"] = Peer(options.peer_python, options.peer, form).rate
    rates: dict[str, list[float]] = {name: [] for name in measure}
    for _ in range(options.rounds):
        for name, tokens_per_second in measure.items():
            rates[name].append(tokens_per_second(options.steps))
    for name, values in rates.items():
        ratios = [fast / value for fast, value in zip(rates["fast"], values, strict=True)]
        print(f"{name}: {median_and_range(values, 0)} tokens per CPU second; fast / {name} {median_and_range(ratios)}")
    print(f"peak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main()
