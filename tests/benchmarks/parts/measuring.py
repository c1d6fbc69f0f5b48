"""What the benchmarks share: options, the machine's description, medians with their ranges, and a training step.

MLX is imported inside the functions, because `runtime.prepare` comes before it.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from nanochat.runtime import Runtime

if TYPE_CHECKING:
    import mlx.core as mx

    from nanochat.model.gpt import GPT
    from nanochat.optim.groups import OptimizerConfig
    from nanochat.train.step import TrainStep


def option_parser(doc: str | None, **numbers: int) -> argparse.ArgumentParser:
    """Return a parser that shows a script's docstring, with whole-number options and their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    return parser


def describe_machine(chosen: Runtime) -> str:
    """Return the date, the device, and the versions that a measurement belongs to."""
    import mlx.core as mx

    from nanochat.model.device import device_name

    computes_on_cpu = mx.default_device() == mx.Device(mx.cpu)
    assert computes_on_cpu == (chosen.backend == "cpu"), "MLX computes on another device: call `select_device` first"

    name = "CPU" if chosen.backend == "cpu" else device_name()
    return f"{datetime.date.today().isoformat()}; {name}; MLX {version('mlx')}; {chosen.describe()}"


def seconds(action: Callable[[], object], *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long an action takes."""
    began = clock()
    action()
    return clock() - began


def median_and_range(values: Sequence[float], digits: int = 2) -> str:
    """Return for example `1.50 (1.38 to 1.77)`."""
    median, low, high = (f"{x:,.{digits}f}" for x in (statistics.median(values), min(values), max(values)))
    return f"{median} ({low} to {high})"


def training_step(
    model: GPT,
    *,
    rows: int,
    micro_batch_size: int | None = None,
    dtype: str = "float32",
    optimizer: OptimizerConfig | None = None,
    world: mx.distributed.Group | None = None,
) -> TrainStep:
    """Give a model random weights and return its training step, with learning rates for steps of `rows` rows."""
    import mlx.core as mx

    from nanochat.optim.groups import OptimizerConfig, build_groups
    from nanochat.optim.optimizer import Optimizer
    from nanochat.train.step import TrainStep

    model.initialise(mx.random.key(0))
    model.set_compute_dtype(mx.bfloat16 if dtype == "bfloat16" else mx.float32)
    mx.eval(model.named_parameters())
    groups = build_groups(
        model.config, optimizer or OptimizerConfig(), tokens_per_step=rows * model.config.sequence_len
    )
    moments = Optimizer(groups, model.named_parameters(), world=world)
    return TrainStep(model, moments, micro_batch_size=micro_batch_size or rows, world=world)
