"""The optimizer: it applies each group's rule to a model's parameters and keeps all moments in one flat dictionary.

Matrices of one shape are stacked, so that Muon runs once per shape. Not here: gradient accumulation and evaluation,
which are the training step's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import mlx.core as mx

from nanochat.errors import StageError
from nanochat.optim import fused_adamw, fused_muon
from nanochat.optim.adamw import adamw_update
from nanochat.optim.groups import AdamWGroup, Group, MuonGroup
from nanochat.optim.muon import muon_update, polar_express, second_moment_shape, sharded_polar_express

_STEP = "step"


class Optimizer:
    """Muon and AdamW state, as arrays under `step` and `NAME.first_moment`, `NAME.second_moment`."""

    def __init__(
        self, groups: Sequence[Group], parameters: dict[str, mx.array], *, world: mx.distributed.Group | None = None
    ) -> None:
        """Start with zero moments for `parameters`, name -> array.

        The processes of `world` divide Muon's iteration among them; they must all make the same updates.
        """
        assert sorted(n for g in groups for n in g.names) == sorted(parameters), "every parameter in exactly one group"
        self.groups = tuple(groups)
        self._orthogonalize = polar_express if world is None else functools.partial(sharded_polar_express, group=world)
        self._stacks: dict[int, tuple[list[mx.array], mx.array]] = {}
        self.state: dict[str, mx.array] = {_STEP: mx.array(0, dtype=mx.int32)}
        for group in groups:
            for name in group.names:
                shape = parameters[name].shape
                second = second_moment_shape(shape) if isinstance(group, MuonGroup) else shape
                self.state[f"{name}.first_moment"] = mx.zeros(shape)
                self.state[f"{name}.second_moment"] = mx.zeros(second)

    def load_state(self, state: dict[str, mx.array]) -> None:
        """Replace the state. Names, shapes or dtypes that are not those of this model raise a StageError."""
        wrong = sorted(
            name
            for name in self.state.keys() | state.keys()
            if name not in self.state
            or name not in state
            or (self.state[name].shape, self.state[name].dtype) != (state[name].shape, state[name].dtype)
        )
        if wrong:
            raise StageError(f"the optimizer state is not that of this model: {', '.join(wrong[:5])} do not fit")
        self.state = dict(state)
        self._stacks.clear()

    def update(
        self,
        parameters: dict[str, mx.array],
        gradients: dict[str, mx.array],
        *,
        lr_multiplier: float | mx.array,
        momentum: float | mx.array,
        weight_decay: float | mx.array,
        is_finite: mx.array | None = None,
    ) -> dict[str, mx.array]:
        """Return the parameters after one step, name -> array in their dtypes, and update the state; both unevaluated.

        Args:
            parameters: name -> array.
            gradients: name -> array of the mean loss's gradient.
            lr_multiplier: the schedule's factor on every peak rate.
            momentum: Muon's, at this step.
            weight_decay: Muon's, at this step.
            is_finite: a bool scalar. If it is False, neither parameters nor state change; this is for a caller that
                has not waited for the gradients. None means that they are finite.
        """
        self.state[_STEP] = self.state[_STEP] + (1 if is_finite is None else is_finite.astype(mx.int32))
        updated = dict(parameters)
        for group in self.groups:
            lr = group.lr * lr_multiplier
            if isinstance(group, AdamWGroup):
                self._update_adamw(group, updated, gradients, lr, is_finite)
            else:
                rates = (lr, momentum, weight_decay)
                for names in _by_shape(group, parameters):
                    self._update_muon(group, names, updated, gradients, rates, is_finite)
        return updated

    def _update_adamw(
        self,
        group: AdamWGroup,
        updated: dict[str, mx.array],
        gradients: dict[str, mx.array],
        lr: float | mx.array,
        is_finite: mx.array | None,
    ) -> None:
        step = self.state[_STEP].astype(mx.float32)
        for name in group.names:
            first, second = f"{name}.first_moment", f"{name}.second_moment"
            fused = fused_adamw.fused_adamw_update if fused_adamw.applies(updated[name]) else None
            updated[name], self.state[first], self.state[second] = _guarded(adamw_update, fused, is_finite)(
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
        rates: tuple[float | mx.array, float | mx.array, float | mx.array],
        is_finite: mx.array | None,
    ) -> None:
        first = [f"{name}.first_moment" for name in names]
        second = [f"{name}.second_moment" for name in names]
        gradient = mx.stack([gradients[name] for name in names])
        lr, momentum, weight_decay = rates
        fused = fused_muon.fused_muon_update if fused_muon.applies(gradient) else None
        new = _guarded(muon_update, fused, is_finite)(
            self._stacked([updated[name] for name in names]),
            gradient,
            self._stacked([self.state[name] for name in first]),
            self._stacked([self.state[name] for name in second]),
            variant=group.variant,
            lr=lr,
            momentum=momentum,
            beta2=group.beta2,
            weight_decay=weight_decay,
            orthogonalize=self._orthogonalize,
        )
        for stack, holder, keys in zip(new, (updated, self.state, self.state), (names, first, second), strict=True):
            parts = list(stack)
            holder.update(zip(keys, parts, strict=True))
            self._stacks[id(parts[0])] = (parts, stack)

    def _stacked(self, parts: list[mx.array]) -> mx.array:
        """Return the arrays as one stack; the last update's stack, without a copy, if these are its parts."""
        known, stack = self._stacks.pop(id(parts[0]), ([], parts[0]))
        is_same = len(known) == len(parts) and all(a is b for a, b in zip(known, parts, strict=True))
        return stack if is_same else mx.stack(parts)


Update = Callable[..., tuple[mx.array, mx.array, mx.array]]
"""A rule: (parameter, gradient, first moment, second moment, settings) -> the new parameter and moments."""


def _guarded(plain: Update, fused: Update | None, is_finite: mx.array | None) -> Update:
    """Return the rule that changes nothing if `is_finite` is False, by the fused kernels if the device has them."""
    if is_finite is None:
        return plain
    if fused is not None:
        return functools.partial(fused, is_finite=is_finite)

    def update(
        parameter: mx.array, gradient: mx.array, first: mx.array, second: mx.array, **settings: object
    ) -> tuple[mx.array, mx.array, mx.array]:
        new = plain(parameter, gradient, first, second, **settings)
        parameter, first, second = (
            mx.where(is_finite, *pair) for pair in zip(new, (parameter, first, second), strict=True)
        )
        return parameter, first, second

    return update


def _by_shape(group: MuonGroup, parameters: dict[str, mx.array]) -> list[list[str]]:
    """Return the group's names, grouped by shape."""
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name in group.names:
        by_shape.setdefault(tuple(parameters[name].shape), []).append(name)
    return list(by_shape.values())
