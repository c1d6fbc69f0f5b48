"""Learning rate, Muon momentum and weight decay as pure functions of the step.

Steps count from 0: `step` is the number of updates before this one. Not here: the number of steps, the default weight
decay and how it scales with batch size, which the plan decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nanochat.optim.groups import Variant
from nanochat.plurals import several

ScheduleKind = Literal["trapezoid", "cosine", "constant"]
CURRENT_MOMENTUM_WARMUP_STEPS = 400
"""Muon's momentum in `current` rises over these steps, whatever the horizon (nanochat 2026-07)."""

TIME_PARTS = 1_000_000
"""With a horizon in wall time, a schedule's `steps` are this many equal parts of the time. Warm-ups are still steps."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A learning-rate schedule over `steps` optimizer steps, with every default filled in."""

    steps: int
    kind: ScheduleKind = "cosine"
    warmup_steps: int = 0
    warmdown_steps: int = 0
    final_frac: float = 0.0

    def problems(self) -> list[str]:
        """Return one sentence for each reason why the schedule is impossible; an empty list if it is valid."""
        if self.steps < 1:
            return [f"the horizon is {self.steps} steps, but must be at least 1"]
        return [
            f"a {name} of {several(value, 'step')} is longer than the horizon of {several(self.steps, 'step')}"
            for name, value in (("warm-up", self.warmup_steps), ("warm-down", self.warmdown_steps))
            if value > self.steps
        ]


class Defaults(NamedTuple):
    """A variant's defaults for fields of the schedule that the recipe leaves out."""

    kind: ScheduleKind
    warmup_steps: int
    warmdown_frac: float
    final_frac: float


def defaults(variant: Variant) -> Defaults:
    """Return the default schedule of `plain` (half a cosine to 0) or of `current` (a linear warm-down after a warm-up).

    The warm-up is a fixed number of steps. The plan does not shorten it: it refuses a horizon that is too short for it.
    """
    if variant == "current":
        return Defaults(kind="trapezoid", warmup_steps=40, warmdown_frac=0.65, final_frac=0.05)
    return Defaults(kind="cosine", warmup_steps=0, warmdown_frac=0.4, final_frac=0.0)


def lr_multiplier(config: ScheduleConfig, step: int, at: float | None = None) -> float:
    """Return the factor on every learning rate at `step`, when `at` in [0, steps) of the schedule is over.

    `at` is the step itself unless the horizon is in wall time.

    The factor rises linearly from 1 / warmup_steps to 1, stays there, and falls during the warm-down so that it would
    reach final_frac at `steps`. Where warm-up and warm-down overlap, the smaller factor counts.
    """
    warmup = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    remaining = 1 - _warmdown_progress(config, step if at is None else at)
    if config.kind == "cosine":
        remaining = (1 - math.cos(math.pi * remaining)) / 2
    return min(warmup, _mix(config.final_frac, 1.0, remaining))


def muon_momentum(variant: Variant, step: int, schedule: ScheduleConfig, at: float | None = None) -> float:
    """Return Muon's momentum at `step`, when `at` of the schedule is over (see `lr_multiplier`).

    `plain` is constant and falls linearly over the warm-down. `current` rises linearly over the first 400 steps, even
    if the warm-down has begun, and then follows the warm-down, as in nanochat's `get_muon_momentum`.
    """
    warmdown = _warmdown_progress(schedule, step if at is None else at)
    if variant == "plain":
        return _mix(0.95, 0.80, warmdown)
    if step < CURRENT_MOMENTUM_WARMUP_STEPS:
        return _mix(0.85, 0.97, step / CURRENT_MOMENTUM_WARMUP_STEPS)
    return _mix(0.97, 0.90, warmdown)


def weight_decay_at(variant: Variant, peak: float, schedule: ScheduleConfig, at: float) -> float:
    """Return Muon's decay: 0 before and up to `peak` over the warm-down (plain), or a cosine from `peak` to 0."""
    if variant == "plain":
        return peak * _warmdown_progress(schedule, at)
    return peak * 0.5 * (1 + math.cos(math.pi * at / schedule.steps))


def sft_lr_multiplier(progress: float, constant_frac: float, final_frac: float) -> float:
    """Return the factor at `progress` (share of rows consumed): 1 to `constant_frac`, then linear to `final_frac`."""
    if progress <= constant_frac:
        return 1.0
    return _mix(1.0, final_frac, min((progress - constant_frac) / (1 - constant_frac), 1.0))


def sft_defaults(variant: Variant) -> tuple[float, float, float]:
    """Return (factor on all learning rates, constant_frac, final_frac) of a variant's fine-tuning."""
    return (0.8, 0.5, 0.0) if variant == "current" else (1.0, 0.8, 0.0)


def _warmdown_progress(schedule: ScheduleConfig, at: float) -> float:
    """Return 0 before the warm-down, less than 1 during it, and always 0 for a constant schedule."""
    if schedule.kind == "constant" or schedule.warmdown_steps == 0:
        return 0.0
    return max(0.0, 1 - (schedule.steps - at) / schedule.warmdown_steps)


def _mix(start: float, end: float, share: float) -> float:
    return start + (end - start) * share
