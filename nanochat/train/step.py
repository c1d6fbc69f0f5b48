"""One optimizer step: gradients over micro-batches, their mean over the step's tokens, the update.

The loss is the mean over the valid tokens of the whole step and the whole world, never a mean of micro-batch means.
Not here: schedules, data, what happens between steps (`loop`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx
import numpy as np

from nanochat.errors import StageError
from nanochat.model.gpt import GPT
from nanochat.model.loss import IGNORED, summed_nats
from nanochat.optim.optimizer import Optimizer

Named = dict[str, mx.array]
MicroStep = Callable[[Named, mx.array, mx.array], tuple[mx.array, Named]]
"""(parameters, inputs (B, T), targets (B, T)) -> (sum of nats, gradients of that sum)."""


class Rows(Protocol):
    """Rows to train on; targets of -1 are ignored."""

    @property
    def inputs(self) -> np.ndarray:
        """Tokens, (B, T) int32."""
        ...

    @property
    def targets(self) -> np.ndarray:
        """Next tokens, (B, T) int32."""
        ...


@dataclass(frozen=True)
class Rates:
    """What schedules give for one step."""

    lr_multiplier: float
    momentum: float
    weight_decay: float


@dataclass(frozen=True)
class StepResult:
    """What a step measured. `loss` (nats per valid token) and `grad_norm` are float32 scalars, already evaluated.

    `is_applied` is false where loss or gradients were not finite: the weights and the optimizer are then unchanged.
    """

    loss: mx.array
    grad_norm: mx.array
    valid_tokens: int
    is_applied: bool


class TrainStep:
    """Runs optimizer steps on a model.

    Args:
        model: its weights are replaced after each step.
        optimizer: holds the moments.
        micro_batch_size: rows per forward and backward pass; the last pass of a step may have fewer.
        is_compiled: whether to compile that pass. It pays on a GPU; on a CPU `mx.compile` calls a C++ compiler for
            half a minute and its fused operations are slower.
        world: the processes that share each step; None for this process alone.
    """

    def __init__(
        self,
        model: GPT,
        optimizer: Optimizer,
        *,
        micro_batch_size: int,
        is_compiled: bool = False,
        world: mx.distributed.Group | None = None,
    ):
        assert micro_batch_size >= 1, f"micro_batch_size is {micro_batch_size}"
        self.model = model
        self.optimizer = optimizer
        self.micro_batch_size = micro_batch_size
        self._world = world if world is not None and world.size() > 1 else None
        micro_step = _gradients_of(model)
        self._micro_step: MicroStep = mx.compile(micro_step) if is_compiled else micro_step

    def run(self, batch: Rows, *, rates: Rates) -> StepResult:
        """Do one step on this process's rows of a batch and return what it measured.

        Raises:
            StageError: no target of the whole batch counts.
        """
        parameters = self.model.named_parameters()
        nats, gradients = self._accumulate(parameters, batch)
        valid_tokens = int(self._sum_over_world(mx.array(int((batch.targets != IGNORED).sum()))))
        if valid_tokens == 0:
            raise StageError("no target in the whole batch counts: every token is masked")
        loss = self._sum_over_world(nats) / valid_tokens
        gradients = {name: self._sum_over_world(value) / valid_tokens for name, value in gradients.items()}
        grad_norm = mx.sqrt(mx.stack([mx.square(value).sum() for value in gradients.values()]).sum())
        mx.eval(loss, grad_norm, gradients)
        is_finite = bool(mx.isfinite(loss + grad_norm).item())
        if is_finite:
            parameters = self._update(parameters, gradients, rates)
        self.model.set_parameters(parameters)
        return StepResult(loss=loss, grad_norm=grad_norm, valid_tokens=valid_tokens, is_applied=is_finite)

    def _accumulate(self, parameters: Named, batch: Rows) -> tuple[mx.array, Named]:
        """Return the sums over micro-batches. Each is evaluated before the next: a lazy sum would keep every graph."""
        nats, gradients = mx.array(0.0), Named()
        for start in range(0, len(batch.inputs), self.micro_batch_size):
            rows = slice(start, start + self.micro_batch_size)
            more_nats, more = self._micro_step(parameters, mx.array(batch.inputs[rows]), mx.array(batch.targets[rows]))
            nats = nats + more_nats
            # Summed in float32: a bfloat16 sum of many micro-batches would lose the small ones.
            summands = {name: value.astype(mx.float32) for name, value in more.items()}
            del more
            gradients = {name: gradients[name] + value for name, value in summands.items()} if gradients else summands
            del summands
            mx.eval(nats, gradients)
        return nats, gradients

    def _sum_over_world(self, value: mx.array) -> mx.array:
        return value if self._world is None else mx.distributed.all_sum(value, group=self._world)

    def _update(self, parameters: Named, gradients: Named, rates: Rates) -> Named:
        updated = self.optimizer.update(
            parameters,
            gradients,
            lr_multiplier=rates.lr_multiplier,
            momentum=rates.momentum,
            weight_decay=rates.weight_decay,
        )
        mx.eval(updated, self.optimizer.state)
        return updated


def _gradients_of(model: GPT) -> MicroStep:
    def nats_of(parameters: Named, inputs: mx.array, targets: mx.array) -> mx.array:
        # The model then holds the tracer's arrays; `run` puts real ones back.
        model.set_parameters(parameters)
        return summed_nats(model, inputs, targets)

    micro_step: MicroStep = mx.value_and_grad(nats_of)
    return micro_step
