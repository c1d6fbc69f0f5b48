"""Whether the kernels in bfloat16 learn the same as the plain forms in float32: losses on the same steps of real text.

Part of `gpu_train.py --text DIR`. Training begins from three starts, of which the first two must agree:

1. weights after as many steps of training, with all parameters trained;
2. initial weights, with `resid_lambdas` and `x0_lambdas` fixed;
3. initial weights, with all parameters trained (printed only).

The third cannot agree. Output projections begin at zero, so at first those multipliers only scale the residual stream,
and the norm after it removes the scale. Their gradient is zero except for rounding errors, which Adam turns into whole
steps (at a learning rate of 0.5), and these decide at which step the loss leaves its plateau.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import mlx.core as mx
import numpy as np
from parts.measuring import training_step

from nanochat.data.loaders.batches import Batch
from nanochat.model import dispatch, fused_attention
from nanochat.model.config import GPTConfig
from nanochat.model.cuda import forward
from nanochat.model.dispatch import FastGPT
from nanochat.optim import fused_muon, gradient_sums, optimizer
from nanochat.optim.groups import OptimizerConfig
from nanochat.train.step import Rates

BOUND = 0.002
"""Allowed difference in nats, at the first step and on average over the last half of the steps.

bfloat16 rounds a value at 2^-9, so a logit of up to 15 is off by up to 0.03. Over the tokens of a batch these errors
cancel to below 0.001. Their square, half of 0.03^2 = 0.0005 nats, remains, with its effect on the weights.
"""
ROWS = 2
FIXED_MULTIPLIERS = OptimizerConfig(resid_lr=0.0, x0_lr=0.0)


@dataclass(frozen=True)
class Start:
    """Weights, optimizer moments (None: zero), learning rates and schedule that a run begins with."""

    title: str
    weights: dict[str, mx.array]
    moments: dict[str, mx.array] | None
    rates: OptimizerConfig
    multiplier: Callable[[float], float]
    """Maps the fraction of steps done to the factor on all learning rates."""


class Run:
    def __init__(self, start: Start, *, dtype: str) -> None:
        self.start = start
        self.step = training_step(FastGPT(GPTConfig()), rows=ROWS, dtype=dtype, optimizer=start.rates)
        self.step.model.set_parameters(start.weights)
        if start.moments is not None:
            self.step.optimizer.load_state(start.moments)

    def losses(self, batches: list[Batch]) -> np.ndarray:
        """Return the loss of every step."""
        values = []
        for i, batch in enumerate(batches):
            multiplier = self.start.multiplier((i + 1) / len(batches))
            rates = Rates(lr_multiplier=multiplier, momentum=0.95, weight_decay=0.0)
            values.append(float(self.step.run(batch, rates=rates).loss))
        return np.array(values)


def agree(folder: Path, *, steps: int) -> bool:
    """Print the losses of both paths from every start, on text from a folder of parquet files.

    Returns whether the first two starts agree.
    """
    batches = text_batches(folder, 2 * steps)
    model = FastGPT(GPTConfig())
    model.initialise(mx.random.key(0))
    first = model.named_parameters()
    all_trained = Start("initial weights, all parameters trained", first, None, OptimizerConfig(), lambda share: share)
    fixed = Start("initial weights, residual multipliers fixed", first, None, FIXED_MULTIPLIERS, lambda share: share)
    warm_up = Run(all_trained, dtype="bfloat16")
    warm_up.losses(batches[:steps])
    weights, moments = warm_up.step.model.named_parameters(), dict(warm_up.step.optimizer.state)
    trained = Start(
        f"weights of step {steps}, all parameters trained", weights, moments, OptimizerConfig(), lambda _: 1.0
    )
    print(f"\nlosses on {steps} steps of {ROWS} x 2,048 tokens of real text, SSSL, nats:")
    is_same = _is_close(trained, batches[steps:])
    is_same &= _is_close(fixed, batches[:steps])
    _is_close(all_trained, batches[:steps])
    return is_same


def _is_close(start: Start, batches: list[Batch]) -> bool:
    """Print the losses of both paths from one start; return whether they stay within the bound."""
    fast = Run(start, dtype="bfloat16").losses(batches)
    with plain_forms():
        exact = Run(start, dtype="float32").losses(batches)
    shown = range(0, len(batches), max(1, len(batches) // 5))
    print(f"  {start.title}: " + ", ".join(f"step {i + 1} {fast[i]:.4f} / {exact[i]:.4f}" for i in shown))
    differences = fast - exact
    later = differences[len(batches) // 2 :].mean()
    is_close = bool(abs(differences[0]) <= BOUND and abs(later) <= BOUND)
    print(
        f"    fast bfloat16 / plain float32: first step {differences[0]:+.5f}, mean over the last half {later:+.5f}, "
        f"largest {np.abs(differences).max():.4f}: {'within' if is_close else 'beyond'} {BOUND}"
    )
    return is_close


@contextmanager
def plain_forms() -> Iterator[None]:
    """Use the implementations without our kernels, on the same device."""
    with ExitStack() as stack:
        for module in (forward, dispatch, fused_attention, optimizer, fused_muon, gradient_sums):
            stack.enter_context(mock.patch.object(module, "runs_kernels", lambda: False))
        mx.disable_compile()  # MLX takes minutes to compile what it fuses of them
        stack.callback(mx.enable_compile)
        yield


def text_batches(folder: Path, count: int) -> list[Batch]:
    """Return batches of consecutive text, encoded by a tokenizer that is trained on its beginning."""
    import pyarrow.parquet as pq

    from nanochat.tokenizer import bpe

    config = GPTConfig()
    texts = pq.read_table(sorted(folder.glob("*.parquet"))[0], columns=["text"]).column("text").to_pylist()
    tokenizer = bpe.train(texts, vocab_size=config.vocab_size, max_chars=6_000_000, max_document_chars=10_000)
    length = config.sequence_len + 1
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.bos_id, *tokenizer.encode(text)]
        if len(ids) >= count * ROWS * length:
            break
    assert len(ids) >= count * ROWS * length, f"{folder} has too little text for {count} steps"
    tokens = np.array(ids[: count * ROWS * length], dtype=np.int32).reshape(count, ROWS, length)
    return [Batch(rows[:, :-1].copy(), rows[:, 1:].copy()) for rows in tokens]
