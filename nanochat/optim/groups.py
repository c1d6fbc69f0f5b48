"""Parameter groups: the rule, peak learning rate and weight decay of every parameter. No MLX.

`schedules` multiplies the peak learning rates. Muon's momentum and weight decay depend on the step, so they are in
`schedules` instead of Muon's group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nanochat.model.config import GPTConfig

Variant = Literal["plain", "current"]
Role = Literal["wte", "value_embeds", "lm_head", "resid", "x0", "smear_backout", "matrices"]

REFERENCE_WIDTH = 768
"""Width at which AdamW's rates for embeddings and lm_head were tuned; rates scale with 1 / sqrt(width)."""
REFERENCE_TOKENS_PER_STEP: dict[Variant, int] = {"plain": 2**13, "current": 2**19}
"""Batch for which a variant's rates were tuned; rates scale with the square root of the batch (`batch_scale`)."""
SMALLEST_BATCH_SCALE: dict[Variant, float] = {"plain": 1 / 2, "current": 1 / 4}
"""Smallest factor. At 2,048 tokens per step, half and twice of it learn no better (`tests/benchmarks/learning.py`)."""
ADAMW_EPS = 1e-10


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The recipe's optimizer settings. A learning rate of `None` means the one in the variant's table below."""

    variant: Variant = "plain"
    lr_scale: float = 1.0
    matrix_lr: float | None = None
    embedding_lr: float | None = None
    value_embedding_lr: float | None = None
    unembedding_lr: float | None = None
    resid_lr: float | None = None
    x0_lr: float | None = None
    weight_decay: float | None = None


@dataclass(frozen=True, kw_only=True)
class AdamWGroup:
    """Parameters that AdamW updates, with their peak learning rate."""

    role: Role
    names: tuple[str, ...]
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    eps: float = ADAMW_EPS
    kind: Literal["adamw"] = "adamw"


@dataclass(frozen=True, kw_only=True)
class MuonGroup:
    """Matrices that Muon updates, with their peak learning rate."""

    role: Role
    names: tuple[str, ...]
    lr: float
    beta2: float
    variant: Variant
    kind: Literal["muon"] = "muon"


Group = AdamWGroup | MuonGroup


class _Row(NamedTuple):
    """One line of a variant's table: a peak rate, and whether it scales with the width and with the batch."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float = 0.0
    by_width: bool = False
    by_batch: bool = True


_PLAIN: dict[Role, _Row] = {
    "wte": _Row(0.2, (0.8, 0.95), by_width=True),
    "value_embeds": _Row(0.2, (0.8, 0.95), by_width=True),
    "lm_head": _Row(0.004, (0.8, 0.95), by_width=True),
    "resid": _Row(0.005, (0.8, 0.95)),
    "x0": _Row(0.5, (0.96, 0.95)),
    "smear_backout": _Row(0.2, (0.8, 0.95)),
    "matrices": _Row(0.02, (0.0, 0.95)),
}
_CURRENT: dict[Role, _Row] = {
    "wte": _Row(0.3, (0.8, 0.995), 0.001, by_width=True),
    "value_embeds": _Row(0.15, (0.8, 0.995), 0.01, by_width=True),
    "lm_head": _Row(0.008, (0.8, 0.96), 0.01, by_width=True),
    "resid": _Row(0.005, (0.8, 0.95), 0.05),
    "x0": _Row(0.5, (0.96, 0.95)),
    "smear_backout": _Row(0.2, (0.8, 0.95), by_batch=False),
    "matrices": _Row(0.02, (0.0, 0.9)),
}
_LR_FIELDS: dict[Role, str] = {
    "wte": "embedding_lr",
    "value_embeds": "value_embedding_lr",
    "lm_head": "unembedding_lr",
    "resid": "resid_lr",
    "x0": "x0_lr",
    "matrices": "matrix_lr",
}
"""The recipe's field for the rate of a role."""


def build_groups(config: GPTConfig, optimizer: OptimizerConfig, *, tokens_per_step: int) -> tuple[Group, ...]:
    """Return the groups of a model's parameters, every parameter in exactly one.

    The tables are nanochat's: `plain` is the older one, `current` the one of 2026-07. Rates are multiplied by
    `batch_scale`.
    """
    names_by_role: dict[Role, list[str]] = {}
    for name in config.parameter_shapes():
        names_by_role.setdefault(_role(name), []).append(name)
    return tuple(
        _build_group(role, tuple(names), config, optimizer, tokens_per_step) for role, names in names_by_role.items()
    )


def batch_scale(variant: Variant, tokens_per_step: int) -> float:
    """Return the factor on a variant's rates: the square root of the batch relative to the reference batch, bounded.

    Larger batches do not raise the rates of `plain`; they raise those of `current`, as in nanochat.
    """
    scale = math.sqrt(tokens_per_step / REFERENCE_TOKENS_PER_STEP[variant])
    bounded = max(scale, SMALLEST_BATCH_SCALE[variant])
    return bounded if variant == "current" else min(bounded, 1.0)


def _role(name: str) -> Role:
    """Return the role of a parameter. An unknown name raises a KeyError: a new parameter needs a rule."""
    if name.startswith("transformer.h."):
        return "matrices"
    if name.startswith("value_embeds."):
        return "value_embeds"
    roles: dict[str, Role] = {
        "transformer.wte.weight": "wte",
        "lm_head.weight": "lm_head",
        "resid_lambdas": "resid",
        "x0_lambdas": "x0",
        "smear_gate.weight": "smear_backout",
        "smear_lambda": "smear_backout",
        "backout_lambda": "smear_backout",
    }
    return roles[name]


def _build_group(
    role: Role, names: tuple[str, ...], config: GPTConfig, optimizer: OptimizerConfig, tokens_per_step: int
) -> Group:
    row = (_CURRENT if optimizer.variant == "current" else _PLAIN)[role]
    chosen: float | None = getattr(optimizer, _LR_FIELDS[role]) if role in _LR_FIELDS else None
    lr = optimizer.lr_scale * (row.lr if chosen is None else chosen)
    if row.by_width:
        lr *= (config.n_embd / REFERENCE_WIDTH) ** -0.5
    if row.by_batch:
        lr *= batch_scale(optimizer.variant, tokens_per_step)
    if role == "matrices":
        return MuonGroup(role=role, names=names, lr=lr, beta2=row.betas[1], variant=optimizer.variant)
    return AdamWGroup(role=role, names=names, lr=lr, betas=row.betas, weight_decay=row.weight_decay)
