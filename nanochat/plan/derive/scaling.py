"""Scaling laws that derive the horizon, the batch and the weight decay of pretraining from the model's size.

Not here: the learning rate of a parameter (`optim.groups`), the rate over steps (`optim.schedules`), and the sizes and
FLOPs of a shape (`model.config`).

A pretraining horizon that is not given in steps is rounded up: ceil(tokens / tokens_per_step) steps. A run never sees
fewer tokens than the recipe asks for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from nanochat.model.config import GPTConfig
from nanochat.optim.groups import MuonGroup, OptimizerConfig, batch_scale, build_groups

DEFAULT_RATIO = 12.0
"""Training tokens per scaling parameter, used if the recipe gives no number of tokens."""
REFERENCE_DEPTH = 12
"""Depth at which batch and weight decay were tuned. Both laws are relative to it."""
REFERENCE_TOKENS_PER_STEP = 2**19
BATCH_EXPONENT = 0.383
"""Best batch ~ tokens^0.383: Bergsma et al. 2025, "Power Lines" (2505.13738), as in nanochat 2026-07."""
MIN_AUTO_STEPS = 256
"""`auto` never chooses a batch so large that fewer steps remain. The law was fitted at depth 12 and above."""
CURRENT_WEIGHT_DECAY = 0.28
"""Muon's weight decay at the reference depth, batch and ratio (nanochat 2026-07).

The law keeps B / (rate * decay * D) constant: Wang and Aitchison 2024 (2405.13698). Here D is what the training reads,
also if its horizon is given in steps; nanochat's script then takes the tokens that suit the model's size.
"""
MAX_SHRINK = 0.3
"""Largest share of a weight that one step of `current` may remove: the peak learning rate times the weight decay.

The law reaches it at 47 steps. Up to this share it was as good as a limit of 2 or better, within the spread of seeds.
At twice this share it harmed a run of 25 steps (`tests/benchmarks/results/equal_tokens.md`).
"""
PLAIN_WEIGHT_DECAY = 0.1
"""Muon's weight decay of the plain optimizer, from the golden training run. It does not scale."""


class Choice(NamedTuple):
    """A number that the plan chose, and a sentence for its notes if the choice needs an explanation."""

    value: float
    note: str | None = None


def steps_for_tokens(tokens: float, tokens_per_step: int) -> int:
    """Return the number of steps that see at least `tokens` tokens: ceil(tokens / tokens_per_step), at least 1."""
    return max(1, math.ceil(tokens / tokens_per_step))


def horizon_tokens(
    config: GPTConfig, *, tokens: int | None = None, ratio: float | None = None, flops: float | None = None
) -> float:
    """Return the training tokens of a horizon given as exactly one of `tokens`, `ratio`, `flops`.

    `ratio` is tokens per scaling parameter; `flops` is the FLOPs of the whole training (`GPTConfig.flops_per_token`).
    """
    if tokens is not None:
        return tokens
    if ratio is not None:
        return ratio * config.num_scaling_parameters()
    assert flops is not None, "a horizon is given"
    return flops / config.flops_per_token()


def _reference_tokens(config: GPTConfig) -> float:
    """Return D_d12: the tokens of a depth-12 model of the same architecture at the default ratio."""
    reference = GPTConfig.from_depth(REFERENCE_DEPTH, architecture=config.architecture)
    return DEFAULT_RATIO * reference.num_scaling_parameters()


def auto_tokens_per_step(config: GPTConfig, tokens: float) -> Choice:
    """Return the batch in tokens for a horizon of `tokens`: 2^round(log2(2^19 * (D / D_d12)^0.383)), in whole rows.

    The batch leaves at least MIN_AUTO_STEPS steps and has at least one row. A note says if the law was limited.
    """
    share = tokens / _reference_tokens(config)
    law = 2 ** round(math.log2(REFERENCE_TOKENS_PER_STEP * share**BATCH_EXPONENT))
    largest = 2 ** math.floor(math.log2(max(1.0, tokens / MIN_AUTO_STEPS)))
    rows = max(1, round(min(law, largest) / config.sequence_len))
    batch = rows * config.sequence_len
    if law <= largest:
        return Choice(batch)
    return Choice(
        batch,
        f"tokens_per_step: the batch law gives {law:,}, which leaves fewer than {MIN_AUTO_STEPS} steps at this "
        f"size, so the plan takes {batch:,}",
    )


def muon_weight_decay(optimizer: OptimizerConfig, config: GPTConfig, *, tokens: float, tokens_per_step: int) -> Choice:
    """Return Muon's peak weight decay: a constant (plain), or a law that falls with the horizon (current).

    The law is 0.28 * (B / 2^19) / s * (D_d12 / D), where B is the batch, s the factor on the learning rates
    (`optim.groups.batch_scale`) and D the tokens of the training. A note says if the law was limited.
    """
    if optimizer.variant == "plain":
        return Choice(PLAIN_WEIGHT_DECAY)
    batch_factor = tokens_per_step / REFERENCE_TOKENS_PER_STEP / batch_scale(optimizer.variant, tokens_per_step)
    law = CURRENT_WEIGHT_DECAY * batch_factor * _reference_tokens(config) / tokens
    groups = build_groups(config, optimizer, tokens_per_step=tokens_per_step)
    lr = max(group.lr for group in groups if isinstance(group, MuonGroup))
    if law * lr <= MAX_SHRINK:
        return Choice(law)
    return Choice(
        MAX_SHRINK / lr,
        f"weight decay: the scaling law gives {law:.3g}, which would remove {law * lr:.0%} of a weight in one step of "
        f"this short training; limited to {MAX_SHRINK / lr:.3g}",
    )
