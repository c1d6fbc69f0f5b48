"""Learning rate, Muon momentum and weight decay as pure functions of the step.

A step is counted from 0: `step` is the number of updates done before this one. Not here: how many steps there are, or
how batch size and weight decay scale (the plan's).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nanochat.optim.groups import Variant

ScheduleKind = Literal["trapezoid", "cosine", "constant"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A learning-rate schedule over `steps` optimizer steps, with every default filled in."""

    steps: int
    kind: Literal["trapezoid", "cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    warmdown_steps: int = 0
    final_frac: float = 0.0

    def problems(self) -> list[str]:
        """Return what makes the schedule impossible, one sentence each; empty where it is sound."""
        if self.steps < 1:
            return [f"the horizon is {self.steps} steps, but must be at least 1"]
        found = [
            f"`{name}` is {value}, but cannot be negative"
            for name, value in (("warmup_steps", self.warmup_steps), ("warmdown_steps", self.warmdown_steps))
            if value < 0
        ]
        for name, value in (("warm-up", self.warmup_steps), ("warm-down", self.warmdown_steps)):
            if value > self.steps:
                found.append(f"a {name} of {value} steps is longer than the horizon of {self.steps} steps")
        if not 0 <= self.final_frac <= 1:
            found.append(f"`final_frac` is {self.final_frac}, but must lie between 0 and 1")
        return found


class Defaults(NamedTuple):
    """A variant's schedule, where the recipe does not say."""

    kind: ScheduleKind
    warmup_steps: int
    warmdown_frac: float
    final_frac: float


def defaults(variant: Variant) -> Defaults:
    """Return a variant's schedule: half a cosine to 0 over the last 40 % (plain), or linear to 5 % over the last 65 %.

    The warm-up counts in steps; the plan shortens this default where the horizon is shorter.
    """
    if variant == "current":
        return Defaults(kind="trapezoid", warmup_steps=40, warmdown_frac=0.65, final_frac=0.05)
    return Defaults(kind="cosine", warmup_steps=0, warmdown_frac=0.4, final_frac=0.0)


def default_weight_decay(variant: Variant) -> float:
    """Return Muon's weight decay at its largest; for `current` before the plan scales it by batch and horizon."""
    return 0.28 if variant == "current" else 0.1


def lr_multiplier(config: ScheduleConfig, step: int) -> float:
    """Return the factor on every learning rate at `step` in [0, steps).

    A linear warm-up whose first value is 1 / warmup_steps, then 1, then a warm-down that would reach final_frac at
    `steps`; where the two overlap, the smaller.
    """
    warmup = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    remaining = 1 - _warmdown_progress(config, step)
    if config.kind == "cosine":
        remaining = (1 - math.cos(math.pi * remaining)) / 2
    return min(warmup, _mix(config.final_frac, 1.0, remaining))


def muon_momentum(variant: Variant, step: int, schedule: ScheduleConfig) -> float:
    """Return Muon's momentum.

    plain: 0.95, ramped to 0.80 over the warm-down. current: 0.85 -> 0.97 over 400 steps, 0.90 at the warm-down's end.
    """
    warmdown = _warmdown_progress(schedule, step)
    if variant == "plain":
        return _mix(0.95, 0.80, warmdown)
    if warmdown > 0:
        return _mix(0.97, 0.90, warmdown)
    return _mix(0.85, 0.97, min(step / 400, 1.0))


def weight_decay_at(variant: Variant, peak: float, schedule: ScheduleConfig, step: int) -> float:
    """Return Muon's decay: 0, then rising to `peak` over the warm-down (plain); a cosine from `peak` to 0 (current)."""
    if variant == "plain":
        return peak * _warmdown_progress(schedule, step)
    return peak * 0.5 * (1 + math.cos(math.pi * step / schedule.steps))


def sft_lr_multiplier(progress: float, constant_frac: float, final_frac: float) -> float:
    """Return the factor at `progress` (share of rows consumed): 1 to `constant_frac`, then linear to `final_frac`."""
    if progress <= constant_frac:
        return 1.0
    return _mix(1.0, final_frac, min((progress - constant_frac) / (1 - constant_frac), 1.0))


def sft_defaults(variant: Variant) -> tuple[float, float, float]:
    """Return (factor on all learning rates, constant_frac, final_frac) of a variant's fine-tuning."""
    return (0.8, 0.5, 0.0) if variant == "current" else (1.0, 0.8, 0.0)


def _warmdown_progress(schedule: ScheduleConfig, step: int) -> float:
    """Return 0 before the warm-down and up to (not reaching) 1 in it; always 0 where the rate is constant."""
    if schedule.kind == "constant" or schedule.warmdown_steps == 0:
        return 0.0
    return max(0.0, 1 - (schedule.steps - step) / schedule.warmdown_steps)


def _mix(start: float, end: float, share: float) -> float:
    return start + (end - start) * share
