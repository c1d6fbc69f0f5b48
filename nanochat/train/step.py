"""One optimizer step: accumulate gradients over micro-batches and processes, then update the model.

The loss is a weighted sum over the valid tokens of the whole step, of all processes. In pretraining and fine-tuning the
weights are equal, which makes it their mean; it is not a mean of micro-batch means.
Not here: schedules, data, and the loop around the steps (`loop`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import mlx.core as mx

from nanochat.data.loaders.batches import Pass
from nanochat.errors import StageError
from nanochat.model.device import runs_on_cpu
from nanochat.model.dispatch import is_worth_compiling, loss_and_gradients, summed_loss, working_parameters
from nanochat.model.gpt import GPT
from nanochat.optim.gradient_sums import added, grad_norm
from nanochat.optim.optimizer import Optimizer

NamedArrays = dict[str, mx.array]
MicroStep = Callable[[NamedArrays, mx.array, mx.array, mx.array], tuple[mx.array, NamedArrays]]
"""(parameters, inputs (B, T), targets (B, T), weights () or (B, T)) -> (weighted loss in nats, its gradients)."""


class Rows(Protocol):
    """The contribution of this process to a step."""

    @property
    def valid_tokens(self) -> int:
        """The number of scored targets in the whole step, those of other processes included."""
        ...

    def passes(self, micro_batch_size: int) -> Sequence[Pass]:
        """Return the forward and backward passes, of at most `micro_batch_size` rows each. There is at least one."""
        ...


@dataclass(frozen=True)
class Rates:
    """The schedules' values for one step."""

    lr_multiplier: float
    momentum: float
    weight_decay: float


@dataclass(frozen=True)
class StepResult:
    """The measurements of a step. `loss` (nats per valid token) and `grad_norm` are float32 scalars.

    `is_applied` is false if the loss or a gradient was not finite; the step then left weights and optimizer unchanged.
    On a GPU the step returns before these three are computed, and reading one waits for it. `votes` are the sums over
    all processes of their votes before the step; None if this process trains alone.
    """

    loss: mx.array
    grad_norm: mx.array
    valid_tokens: int
    is_applied: bool | mx.array
    votes: mx.array | None = None


class Step(Protocol):
    """Updates a model with the rows of a step."""

    def run(self, batch: Rows, *, rates: Rates, votes: Callable[[], Sequence[float]] = tuple) -> StepResult:
        """See `TrainStep.run`."""
        ...


class TrainStep:
    """Runs optimizer steps on a model.

    Args:
        model: the model to train; each step replaces its weights.
        optimizer: holds the moments.
        micro_batch_size: rows per forward and backward pass; the last pass of a step may have fewer.
        world: the processes that share each step; None if this process trains alone.
    """

    def __init__(
        self, model: GPT, optimizer: Optimizer, *, micro_batch_size: int, world: mx.distributed.Group | None = None
    ):
        assert micro_batch_size >= 1, f"micro_batch_size is {micro_batch_size}"
        self.model = model
        self.optimizer = optimizer
        self.micro_batch_size = micro_batch_size
        self._world = world if world is not None and world.size() > 1 else None
        micro_step = _gradients_of(model)
        self._micro_step: MicroStep = mx.compile(micro_step) if is_worth_compiling(model) else micro_step
        self._pending: mx.array | None = None
        self._built_update: list[object] = []
        """The arrays of an update whose graph is built, but not submitted."""

    def run(self, batch: Rows, *, rates: Rates, votes: Callable[[], Sequence[float]] = tuple) -> StepResult:
        """Run a step on this process's rows of a batch, and return its measurements.

        On a GPU this returns while the step is still being computed; at most one earlier step is then unfinished. The
        update may be submitted with the next step only, or when something reads the weights or the optimizer's state.
        `votes` is called only if several processes share the step. Their votes are summed together with the loss, which
        costs nothing extra.

        Raises:
            StageError: no target of the whole batch is scored.
        """
        valid_tokens = batch.valid_tokens
        if valid_tokens == 0:
            raise StageError("no target in the whole batch is scored: every token is masked")
        parameters = self.model.named_parameters()
        passes = batch.passes(self.micro_batch_size)
        nats, gradients = self._accumulate(parameters, passes)
        loss, voted = self._sum_with_votes(nats, votes)
        gradients = {name: self._sum_over_world(value) for name, value in gradients.items()}
        norm = grad_norm([*gradients.values()])
        is_applied: bool | mx.array
        if runs_on_cpu():
            is_applied = self._update_and_wait(parameters, gradients, rates, (loss, norm))
        else:
            defers = len(passes) == 1 and self._world is None
            is_applied = self._start_update(parameters, gradients, rates, (loss, norm), defers=defers)
        return StepResult(loss=loss, grad_norm=norm, valid_tokens=valid_tokens, is_applied=is_applied, votes=voted)

    def _accumulate(self, parameters: NamedArrays, passes: Sequence[Pass]) -> tuple[mx.array, NamedArrays]:
        """Return the weighted loss and its gradients, summed over micro-batches.

        Matrices are cast to the compute dtype once. Their gradients have that dtype and are summed in float32, because
        a bfloat16 sum would lose the small ones.
        """
        working = working_parameters(self.model, parameters)
        nats, gradients = mx.array(0.0), NamedArrays()
        for part in passes:
            more_nats, more = self._micro_step(working, *map(mx.array, part))
            nats = nats + more_nats
            if len(passes) == 1:
                return nats, more
            dtypes = {name: value.dtype for name, value in more.items()}
            gradients = added(gradients, more)
            del more
            self._submit(nats, nats, gradients)
        # The dtype of a single micro-batch, so that the update does not depend on the number of micro-batches.
        return nats, {name: value.astype(dtypes[name]) for name, value in gradients.items()}

    def _submit(self, last: mx.array, *arrays: object) -> None:
        """Evaluate arrays: on a GPU without waiting for them, but for the `last` array of the submission before.

        A lazy sum over micro-batches would keep all their graphs in memory.
        """
        if runs_on_cpu():
            mx.eval(*arrays)
            return
        built, self._built_update = self._built_update, []
        if built:
            mx.async_eval(*built)  # type: ignore[no-untyped-call]
            del built
        mx.async_eval(*arrays)  # type: ignore[no-untyped-call]
        previous, self._pending = self._pending, last
        if previous is not None:
            mx.eval(previous)

    def _sum_with_votes(self, nats: mx.array, votes: Callable[[], Sequence[float]]) -> tuple[mx.array, mx.array | None]:
        if self._world is None:
            return nats, None
        summed = self._sum_over_world(mx.concatenate([nats.reshape(1), mx.array([float(vote) for vote in votes()])]))
        return summed[0], summed[1:]

    def _sum_over_world(self, value: mx.array) -> mx.array:
        return value if self._world is None else mx.distributed.all_sum(value, group=self._world)

    def _update_and_wait(
        self, parameters: NamedArrays, gradients: NamedArrays, rates: Rates, measured: tuple[mx.array, mx.array]
    ) -> bool:
        """Evaluate the gradients, and update the model if loss and gradients are finite."""
        mx.eval(measured, gradients)
        is_finite = bool(mx.isfinite(measured[0] + measured[1]).item())
        if is_finite:
            parameters = self.optimizer.update(parameters, gradients, **asdict(rates))
            mx.eval(parameters, self.optimizer.arrays)
        self.model.set_parameters(parameters)
        return is_finite

    def _start_update(
        self,
        parameters: NamedArrays,
        gradients: NamedArrays,
        rates: Rates,
        measured: tuple[mx.array, mx.array],
        *,
        defers: bool,
    ) -> mx.array:
        """Start the update without waiting: the device itself skips it if loss or gradients are not finite.

        If it `defers`, the passes start here, and their update with the next passes. The device would otherwise be done
        with the update, a few large operations, before Python has built the next passes. Processes that share a step do
        not defer, because their updates exchange arrays: all must run them at the same place. Neither do steps of
        several passes, for which the memory was not measured.
        """
        is_finite = mx.isfinite(measured[0] + measured[1])
        if defers:
            self._submit(measured[0], measured, is_finite, gradients)
        parameters = self.optimizer.update(parameters, gradients, **asdict(rates), is_finite=is_finite)
        self.model.set_parameters(parameters)
        if defers:
            self._built_update = [parameters, self.optimizer.arrays]
        else:
            self._submit(measured[0], measured, is_finite, parameters, self.optimizer.arrays)
        return is_finite


def _gradients_of(model: GPT) -> MicroStep:
    def weighted_loss(parameters: NamedArrays, inputs: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        # The model holds the tracer's arrays from here on, until `run` sets real ones.
        model.set_parameters(parameters)
        if weights.ndim:
            return summed_loss(model, inputs, targets, weights)
        return weights * summed_loss(model, inputs, targets)

    by_differentiation: MicroStep = mx.value_and_grad(weighted_loss)

    def micro_step(
        parameters: NamedArrays, inputs: mx.array, targets: mx.array, weights: mx.array
    ) -> tuple[mx.array, NamedArrays]:
        computed = loss_and_gradients(model, parameters, inputs, targets, weights)
        return computed or by_differentiation(parameters, inputs, targets, weights)

    return micro_step
