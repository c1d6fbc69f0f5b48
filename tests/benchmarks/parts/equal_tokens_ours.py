"""Trains our `plain` or `current` on the rows of `equal_tokens.py`."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from parts.equal_tokens_run import Result, Run

from nanochat import runtime

CHOSEN = runtime.prepare(trains=True)

import mlx.core as mx  # noqa: E402
from parts.measuring import training_step  # noqa: E402

from nanochat.data.loaders.batches import Batch  # noqa: E402
from nanochat.evals.bits_per_byte import evaluate_bpb  # noqa: E402
from nanochat.model.config import GPTConfig  # noqa: E402
from nanochat.model.device import select_device  # noqa: E402
from nanochat.model.dispatch import FastGPT  # noqa: E402
from nanochat.model.gpt import GPT  # noqa: E402
from nanochat.optim import schedules  # noqa: E402
from nanochat.optim.groups import OptimizerConfig, Variant  # noqa: E402
from nanochat.train.step import Rates  # noqa: E402


def write_initial_weights(run: Run) -> None:
    """Write the weights that a run of `current` starts from, for the peer.

    They come from the same backend, because two backends may round random numbers differently.
    """
    select_device(CHOSEN.backend)
    model = _build(run, "current", run.held_out().inputs.shape[1])
    _initialise(model, run)
    mx.savez(str(run.initial_weights), **model.named_parameters())


def train(run: Run, variant: Variant) -> Result:
    """Train a model of the variant's architecture with the variant's optimizer, and measure it."""
    select_device(CHOSEN.backend)
    began, held_out = time.monotonic(), run.held_out()
    sequence_len = held_out.inputs.shape[1]
    step = training_step(
        _build(run, variant, sequence_len),
        rows=run.tokens_per_step // sequence_len,
        micro_batch_size=run.micro_batch_size,
        dtype=CHOSEN.dtype,
        optimizer=OptimizerConfig(variant=variant),
    )
    _initialise(step.model, run)
    schedule = _schedule(run, variant)
    losses = []
    for i, tokens in enumerate(run.batches()):
        rates = Rates(
            lr_multiplier=schedules.lr_multiplier(schedule, i),
            momentum=schedules.muon_momentum(variant, i, schedule),
            weight_decay=schedules.weight_decay_at(variant, run.weight_decay, schedule, i),
        )
        losses.append(step.run(Batch(tokens[:, :-1], tokens[:, 1:]), rates=rates).loss)
        run.print_progress(losses)
    starts = range(0, len(held_out.inputs), run.micro_batch_size)
    parts = [slice(start, start + run.micro_batch_size) for start in starts]
    batches = [Batch(held_out.inputs[part], held_out.targets[part]) for part in parts]
    return Result(
        bpb=evaluate_bpb(step.model, batches, held_out.token_bytes).bpb,
        losses=[float(loss) for loss in losses],
        seconds=time.monotonic() - began,
    )


def _build(run: Run, variant: Variant, sequence_len: int) -> FastGPT:
    shape = GPTConfig.from_depth(run.depth, architecture="current" if variant == "current" else "seed")
    return FastGPT(replace(shape, sequence_len=sequence_len, vocab_size=run.vocab_size))


def _initialise(model: GPT, run: Run) -> None:
    model.initialise(mx.random.key(run.seed))
    if not run.projections:
        return
    parameters = model.named_parameters()
    names = sorted(name for name in parameters if name.endswith("c_proj.weight"))
    bound = run.projections * math.sqrt(3 / model.config.n_embd)
    for name, key in zip(names, mx.random.split(mx.random.key(run.seed), len(names)), strict=True):
        parameters[name] = mx.random.uniform(-bound, bound, parameters[name].shape, key=key)
    model.set_parameters(parameters)


def _schedule(run: Run, variant: Variant) -> schedules.ScheduleConfig:
    table = schedules.defaults(variant)
    return schedules.ScheduleConfig(
        steps=run.steps,
        kind=table.kind,
        warmup_steps=min(table.warmup_steps, run.warmup_steps),
        warmdown_steps=round(table.warmdown_frac * run.steps),
        final_frac=table.final_frac,
    )
