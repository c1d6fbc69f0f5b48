"""Time and memory of the parts of a training step on a GPU, each measured alone. Part of `gpu_train.py`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx

from nanochat.data.loaders.batches import Batch
from nanochat.model.cuda import softcap_loss
from nanochat.model.dispatch import working_parameters
from nanochat.model.low_memory import loss
from nanochat.train.step import TrainStep

REPEATS = 6


@dataclass(frozen=True)
class Part:
    """A part's median time, its peak memory beyond what existed before, and the size of its result."""

    name: str
    seconds: float
    peak_bytes: int
    result_bytes: int


def measure_parts(step: TrainStep, batch: Batch) -> list[Part]:
    """Return the parts of a step: forward pass, loss with its gradients, both passes, and the update."""
    model, optimizer = step.model, step.optimizer
    parameters = model.named_parameters()
    working = working_parameters(model, parameters)
    inputs, targets = mx.array(batch.inputs), mx.array(batch.targets)
    mx.eval(working, inputs, targets)

    def hidden() -> mx.array:
        model.set_parameters(working)
        return model.hidden(inputs)

    def passes() -> object:
        return step._micro_step(working, inputs, targets, mx.array(1e-5))

    def head_loss() -> object:
        rows = mx.ones((inputs.size, model.config.n_embd), mx.bfloat16)
        summed = loss.chunked_sum(softcap_loss.KERNELS, model.config.vocab_size)
        function = mx.value_and_grad(lambda r, w: summed(r, w, targets.reshape(-1))[0], argnums=(0, 1))
        return function(rows, working["lm_head.weight"])

    gradients = step._micro_step(working, inputs, targets, mx.array(1e-5))[1]
    mx.eval(gradients)
    model.set_parameters(parameters)
    state = optimizer.state
    mx.eval(state)

    def update() -> object:
        optimizer.load_state(state)
        finite = mx.array(True)
        rates = {"lr_multiplier": 0.0, "momentum": 0.95, "weight_decay": 0.0}
        return optimizer.update(parameters, gradients, **rates, is_finite=finite), optimizer.arrays

    parts = {"forward": hidden, "loss and its gradients": head_loss, "forward and backward": passes, "update": update}
    measured = [_measure(name, part) for name, part in parts.items()]
    model.set_parameters(parameters)
    return measured


def _measure(name: str, part: Callable[[], object]) -> Part:
    seconds, peaks, sizes = [], [], []
    for _ in range(REPEATS):
        mx.synchronize()
        mx.reset_peak_memory()
        held, begin = mx.get_active_memory(), time.perf_counter()
        result = part()
        mx.eval(result)
        mx.synchronize()
        seconds.append(time.perf_counter() - begin)
        peaks.append(mx.get_peak_memory() - held)
        sizes.append(mx.get_active_memory() - held)
        del result
    return Part(name, statistics.median(seconds), max(peaks), max(sizes))
