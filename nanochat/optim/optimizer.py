"""Optimizer: the groups' rules applied to a model's flat parameters, and their state as one flat dictionary.

Matrices of one shape are stacked, so that Muon runs once per shape. Not here: gradient accumulation and when to
evaluate (the training step).
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from nanochat.errors import StageError
from nanochat.optim.adamw import adamw_update
from nanochat.optim.groups import AdamWGroup, Group, MuonGroup
from nanochat.optim.muon import muon_update, second_moment_shape

_STEP = "step"


class Optimizer:
    """Muon and AdamW state, as arrays under `step` and `NAME.first_moment`, `NAME.second_moment`."""

    def __init__(self, groups: Sequence[Group], parameters: dict[str, mx.array]) -> None:
        """Start with zero moments for `parameters`, name -> array."""
        assert sorted(n for g in groups for n in g.names) == sorted(parameters), "every parameter in exactly one group"
        self.groups = tuple(groups)
        self.state: dict[str, mx.array] = {_STEP: mx.array(0, dtype=mx.int32)}
        for group in groups:
            for name in group.names:
                shape = parameters[name].shape
                second = second_moment_shape(shape) if isinstance(group, MuonGroup) else shape
                self.state[f"{name}.first_moment"] = mx.zeros(shape)
                self.state[f"{name}.second_moment"] = mx.zeros(second)

    def load_state(self, state: dict[str, mx.array]) -> None:
        """Replace the state by what `state` held, bit for bit.

        Raises:
            StageError: names or shapes are not this model's.
        """
        wrong = sorted(
            name
            for name in self.state.keys() | state.keys()
            if name not in self.state or name not in state or self.state[name].shape != state[name].shape
        )
        if wrong:
            raise StageError(f"the optimizer state is not that of this model: {', '.join(wrong[:5])} do not fit")
        self.state = dict(state)

    def update(
        self,
        parameters: dict[str, mx.array],
        gradients: dict[str, mx.array],
        *,
        lr_multiplier: float | mx.array,
        momentum: float | mx.array,
        weight_decay: float | mx.array,
    ) -> dict[str, mx.array]:
        """Return the parameters after one step, name -> array in the dtype given; the state moves along, unevaluated.

        Args:
            parameters: name -> array.
            gradients: name -> array of the mean loss's gradient.
            lr_multiplier: the schedule's factor on every peak rate.
            momentum: Muon's, at this step.
            weight_decay: Muon's, at this step.
        """
        self.state[_STEP] = self.state[_STEP] + 1
        updated = dict(parameters)
        for group in self.groups:
            lr = group.lr * lr_multiplier
            if isinstance(group, AdamWGroup):
                self._update_adamw(group, updated, gradients, lr)
            else:
                for names in _by_shape(group, parameters):
                    self._update_muon(group, names, updated, gradients, lr, momentum, weight_decay)
        return updated

    def _update_adamw(
        self, group: AdamWGroup, updated: dict[str, mx.array], gradients: dict[str, mx.array], lr: float | mx.array
    ) -> None:
        step = self.state[_STEP].astype(mx.float32)
        for name in group.names:
            first, second = f"{name}.first_moment", f"{name}.second_moment"
            updated[name], self.state[first], self.state[second] = adamw_update(
                updated[name],
                gradients[name],
                self.state[first],
                self.state[second],
                step=step,
                lr=lr,
                betas=group.betas,
                eps=group.eps,
                weight_decay=group.weight_decay,
            )

    def _update_muon(
        self,
        group: MuonGroup,
        names: list[str],
        updated: dict[str, mx.array],
        gradients: dict[str, mx.array],
        lr: float | mx.array,
        momentum: float | mx.array,
        weight_decay: float | mx.array,
    ) -> None:
        first = [f"{name}.first_moment" for name in names]
        second = [f"{name}.second_moment" for name in names]
        stacks = muon_update(
            mx.stack([updated[name] for name in names]),
            mx.stack([gradients[name] for name in names]),
            mx.stack([self.state[name] for name in first]),
            mx.stack([self.state[name] for name in second]),
            variant=group.variant,
            lr=lr,
            momentum=momentum,
            beta2=group.beta2,
            weight_decay=weight_decay,
        )
        updated.update(zip(names, stacks[0], strict=True))
        self.state.update(zip(first, stacks[1], strict=True))
        self.state.update(zip(second, stacks[2], strict=True))


def _by_shape(group: MuonGroup, parameters: dict[str, mx.array]) -> list[list[str]]:
    """Return the group's names, those of equal shape together."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name in group.names:
        by_shape.setdefault(tuple(parameters[name].shape), []).append(name)
    return list(by_shape.values())
