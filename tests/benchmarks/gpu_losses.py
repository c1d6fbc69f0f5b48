"""Do the fast path in bfloat16 and the plain forms in float32 learn the same? Losses on the same steps of real text.

Part of `gpu_train.py --text DIR`. Two starts are judged: weights that have learnt for as many steps, everything moving;
and first weights with `resid_lambdas` and `x0_lambdas` still. A third is printed: first weights, everything moving.
Output projections begin at zero, so the stream's scale, which is all that those multipliers change then, meets a norm:
their gradient vanishes but for rounding, of which Adam makes whole steps (at a rate of 0.5), and the step at which the
loss leaves its plateau follows the signs of rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import mlx.core as mx
import numpy as np

from nanochat.data.loaders.pretrain import Batch
from nanochat.model import loss
from nanochat.model.config import GPTConfig
from nanochat.model.cuda import forward
from nanochat.model.gpt import GPT
from nanochat.optim import fused_adamw, fused_muon
from nanochat.optim.groups import OptimizerConfig, build_groups
from nanochat.optim.optimizer import Optimizer
from nanochat.train.step import Rates, TrainStep

BOUND = 0.002
"""Nats between the two, at the first step and in the mean over the last half of the steps.

bfloat16 rounds a value at 2^-9, so a logit of up to 15 is off by up to 0.03. Over the tokens of a batch such errors
cancel to below 0.001; what is left is their square, half of 0.03^2 = 0.0005 nats, and what it does to the weights.
"""
ROWS = 2
STILL = OptimizerConfig(resid_lr=0.0, x0_lr=0.0)


@dataclass(frozen=True)
class Start:
    """Where runs begin: weights, moments (None: none yet), rates of the groups, and the schedule."""

    title: str
    weights: dict[str, mx.array]
    moments: dict[str, mx.array] | None
    rates: OptimizerConfig
    multiplier: Callable[[float], float]
    """Factor on all rates at a share of the steps."""


class Run:
    """A model in training from a start, in one dtype."""

    def __init__(self, start: Start, *, dtype: mx.Dtype) -> None:
        config = GPTConfig()
        self.start, self.model = start, GPT(config)
        self.model.set_parameters(start.weights)
        self.model.set_compute_dtype(dtype)
        mx.eval(self.model.parameters())
        groups = build_groups(config, start.rates, tokens_per_step=ROWS * config.sequence_len)
        self.optimizer = Optimizer(groups, self.model.named_parameters())
        if start.moments is not None:
            self.optimizer.load_state(start.moments)
        self.step = TrainStep(self.model, self.optimizer, micro_batch_size=ROWS)

    def losses(self, batches: list[Batch]) -> np.ndarray:
        """Return the loss of every step."""
        found = []
        for i, batch in enumerate(batches):
            multiplier = self.start.multiplier((i + 1) / len(batches))
            rates = Rates(lr_multiplier=multiplier, momentum=0.95, weight_decay=0.0)
            found.append(float(self.step.run(batch, rates=rates).loss))
        return np.array(found)


def agree(folder: Path, *, steps: int) -> bool:
    """Print losses of both paths from every start, on text of a folder's parquet; return whether they agree."""
    batches = text_batches(folder, 2 * steps)
    model = GPT(GPTConfig())
    model.initialise(mx.random.key(0))
    first = model.named_parameters()
    everything = Start("first weights, everything moving", first, None, OptimizerConfig(), lambda share: share)
    still = Start("first weights, multipliers of the stream still", first, None, STILL, lambda share: share)
    learning = Run(everything, dtype=mx.bfloat16)
    learning.losses(batches[:steps])
    weights, moments = learning.model.named_parameters(), dict(learning.optimizer.state)
    learnt = Start(f"weights of step {steps}, everything moving", weights, moments, OptimizerConfig(), lambda _: 1.0)
    print(f"\nlosses on {steps} steps of {ROWS} x 2,048 tokens of real text, SSSL, nats:")
    is_same = _is_close(learnt, batches[steps:])
    is_same &= _is_close(still, batches[:steps])
    _is_close(everything, batches[:steps])
    return is_same


def _is_close(start: Start, batches: list[Batch]) -> bool:
    """Print what both paths do from a start; return whether they keep within the bound."""
    fast = Run(start, dtype=mx.bfloat16).losses(batches)
    with plain_forms():
        exact = Run(start, dtype=mx.float32).losses(batches)
    shown = range(0, len(batches), max(1, len(batches) // 5))
    print(f"  {start.title}: " + ", ".join(f"step {i + 1} {fast[i]:.4f} / {exact[i]:.4f}" for i in shown))
    apart = fast - exact
    later = apart[len(batches) // 2 :].mean()
    is_kept = bool(abs(apart[0]) <= BOUND and abs(later) <= BOUND)
    print(
        f"    fast bfloat16 / plain float32: first step {apart[0]:+.5f}, mean over the last half {later:+.5f}, largest "
        f"{np.abs(apart).max():.4f}: {'within' if is_kept else 'beyond'} {BOUND}"
    )
    return is_kept


@contextmanager
def plain_forms() -> Iterator[None]:
    """The forms without kernels, on the same device."""
    with ExitStack() as stack:
        for module in (forward, loss, fused_adamw, fused_muon):
            stack.enter_context(mock.patch.object(module, "runs_kernels", lambda: False))
        yield


def text_batches(folder: Path, count: int) -> list[Batch]:
    """Return batches of consecutive real text, in the tokens of a tokenizer trained on its beginning."""
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
    assert len(ids) >= count * ROWS * length, f"{folder} holds too little text for {count} steps"
    whole = np.array(ids[: count * ROWS * length], dtype=np.int32).reshape(count, ROWS, length)
    return [Batch(rows[:, :-1].copy(), rows[:, 1:].copy()) for rows in whole]
