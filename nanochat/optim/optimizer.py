"""The optimizer: it applies each group's rule to a model's parameters and keeps their moments.

Matrices of one shape are stacked, so that Muon runs once per shape. Not here: gradient accumulation and evaluation,
which are the training step's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from nanochat.errors import StageError
from nanochat.model.device import runs_kernels
from nanochat.optim import fused_adamw, fused_muon
from nanochat.optim.adamw import adamw_update
from nanochat.optim.groups import AdamWGroup, Group, MuonGroup
from nanochat.optim.muon import Orthogonalize, muon_update, polar_express, second_moment_shape, sharded_polar_express

_STEP = "step"
_FIRST, _SECOND = "first_moment", "second_moment"

Rate = float | mx.array


class _Unit(NamedTuple):
    """Parameters that are updated together: one of AdamW's, or all of Muon's matrices of one shape, as a stack."""

    group: Group
    names: tuple[str, ...]

    def join(self, parts: list[mx.array]) -> mx.array:
        """Return the parameters' values, one per name, as one array."""
        return mx.stack(parts) if isinstance(self.group, MuonGroup) else parts[0]

    def split(self, joined: mx.array) -> list[mx.array]:
        """Return a value per name: views of a stack."""
        return list(joined) if isinstance(self.group, MuonGroup) else [joined]


class _Values(NamedTuple):
    """Parameters and moments of a unit, joined."""

    parameter: mx.array
    first: mx.array
    second: mx.array


class _Rates(NamedTuple):
    """A learning rate for each unit, and Muon's momentum and weight decay."""

    lrs: Sequence[Rate]
    momentum: Rate
    weight_decay: Rate


class Optimizer:
    """Muon and AdamW, with their moments."""

    def __init__(
        self, groups: Sequence[Group], parameters: dict[str, mx.array], *, world: mx.distributed.Group | None = None
    ) -> None:
        """Start with zero moments for `parameters`, name -> array.

        The processes of `world` divide Muon's iteration among them; they must all make the same updates.
        """
        assert sorted(n for g in groups for n in g.names) == sorted(parameters), "every parameter in exactly one group"
        self.groups = tuple(groups)
        self._units = tuple(_units(groups, parameters))
        self._step = mx.array(0, dtype=mx.int32)
        self._moments = [_no_moments(unit, parameters[unit.names[0]].shape) for unit in self._units]
        self._returned: dict[_Unit, tuple[list[mx.array], mx.array]] = {}
        """The results of the last update for each unit, and the stack of which these arrays are views."""
        orthogonalize = polar_express if world is None else functools.partial(sharded_polar_express, group=world)
        update = functools.partial(_update, self._units, orthogonalize)
        # Python would build the graph of the kernels more slowly than the GPU needs it. MLX takes seconds to compile
        # operations that it can fuse, but the kernels have none.
        has_kernels = all(_has_kernels(unit, parameters[unit.names[0]]) for unit in self._units)
        self._is_compiled = has_kernels and world is None
        self._update = mx.compile(update) if self._is_compiled else update

    @property
    def state(self) -> dict[str, mx.array]:
        """The step count under `step`, and the moments under `NAME.first_moment` and `NAME.second_moment`."""
        state = {_STEP: self._step}
        for unit, (first, second) in zip(self._units, self._moments, strict=True):
            for name, own_first, own_second in zip(unit.names, unit.split(first), unit.split(second), strict=True):
                state |= {f"{name}.{_FIRST}": own_first, f"{name}.{_SECOND}": own_second}
        return state

    @property
    def arrays(self) -> list[mx.array]:
        """All arrays of the state as they are stored, to be evaluated."""
        return [self._step, *(moment for moments in self._moments for moment in moments)]

    def load_state(self, state: dict[str, mx.array]) -> None:
        """Replace the state. Names, shapes or dtypes that are not those of this model raise a StageError."""
        own = self.state
        wrong = sorted(
            name
            for name in own.keys() | state.keys()
            if name not in own
            or name not in state
            or (own[name].shape, own[name].dtype) != (state[name].shape, state[name].dtype)
        )
        if wrong:
            raise StageError(f"the optimizer state is not that of this model: {', '.join(wrong[:5])} do not fit")
        self._step = state[_STEP]
        self._moments = []
        for unit in self._units:
            first, second = (
                unit.join([state[f"{name}.{moment}"] for name in unit.names]) for moment in (_FIRST, _SECOND)
            )
            mx.eval(first, second)
            self._moments.append((first, second))

    def update(
        self,
        parameters: dict[str, mx.array],
        gradients: dict[str, mx.array],
        *,
        lr_multiplier: Rate,
        momentum: Rate,
        weight_decay: Rate,
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
        self._step = self._step + (1 if is_finite is None else is_finite.astype(mx.int32))
        lrs = [unit.group.lr * lr_multiplier for unit in self._units]
        rates = _Rates(lrs, momentum, weight_decay)
        if self._is_compiled:  # numbers would be constants of the compiled function
            lrs = [mx.array(lr, mx.float32) for lr in lrs]
            rates = _Rates(lrs, mx.array(momentum, mx.float32), mx.array(weight_decay, mx.float32))
            is_finite = mx.array(True) if is_finite is None else is_finite
        old = [
            _Values(self._joined(unit, parameters), *moments)
            for unit, moments in zip(self._units, self._moments, strict=True)
        ]
        of_units = [[gradients[name] for name in unit.names] for unit in self._units]
        new, parts = self._update(old, of_units, self._step.astype(mx.float32), rates, is_finite)
        self._moments = [(first, second) for _, first, second in new]
        updated = dict(parameters)
        for unit, own, values in zip(self._units, parts, new, strict=True):
            updated.update(zip(unit.names, own, strict=True))
            self._returned[unit] = (own, values[0])
        return updated

    def _joined(self, unit: _Unit, parameters: dict[str, mx.array]) -> mx.array:
        """Return a unit's parameters as one array: without a copy if they are what the last update returned."""
        parts = [parameters[name] for name in unit.names]
        known, stack = self._returned.pop(unit, ([], parts[0]))
        is_same = len(known) == len(parts) and all(a is b for a, b in zip(known, parts, strict=True))
        return stack if is_same else unit.join(parts)


def _units(groups: Sequence[Group], parameters: dict[str, mx.array]) -> list[_Unit]:
    """Return the groups' units: AdamW's parameters one by one, Muon's by shape."""
    units: list[_Unit] = []
    for group in groups:
        if isinstance(group, AdamWGroup):
            units += (_Unit(group, (name,)) for name in group.names)
            continue
        by_shape: dict[tuple[int, ...], list[str]] = {}
        for name in group.names:
            by_shape.setdefault(tuple(parameters[name].shape), []).append(name)
        units += (_Unit(group, tuple(names)) for names in by_shape.values())
    return units


def _has_kernels(unit: _Unit, parameter: mx.array) -> bool:
    return runs_kernels() if isinstance(unit.group, AdamWGroup) else fused_muon.applies(parameter)


def _no_moments(unit: _Unit, shape: tuple[int, ...]) -> tuple[mx.array, mx.array]:
    if isinstance(unit.group, AdamWGroup):
        return mx.zeros(shape), mx.zeros(shape)
    stack = (len(unit.names), *shape)
    return mx.zeros(stack), mx.zeros(second_moment_shape(stack))


def _update(
    units: Sequence[_Unit],
    orthogonalize: Orthogonalize,
    old: Sequence[_Values],
    gradients: Sequence[list[mx.array]],
    step: mx.array,
    rates: _Rates,
    is_finite: mx.array | None,
) -> tuple[list[_Values], list[list[mx.array]]]:
    """Return the units' new values, and the new parameters of each unit, one per name."""
    lrs, momentum, weight_decay = rates
    new: list[_Values] = []
    for unit, values, own, lr in zip(units, old, gradients, lrs, strict=True):
        group = unit.group
        if isinstance(group, AdamWGroup):
            fused = fused_adamw.fused_adamw_update if runs_kernels() else None
            settings = {"betas": group.betas, "eps": group.eps, "weight_decay": group.weight_decay}
            update = _guarded(adamw_update, fused, is_finite)
            new.append(update(_Values(*values), own[0], step=step, lr=lr, **settings))
        else:
            is_fused = fused_muon.applies(values[0]) and is_finite is not None
            update = _guarded(muon_update, fused_muon.fused_muon_update if is_fused else None, is_finite)
            rule = {"variant": group.variant, "beta2": group.beta2, "orthogonalize": orthogonalize}
            schedule = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
            new.append(update(_Values(*values), own if is_fused else mx.stack(own), **rule, **schedule))
    return new, [unit.split(values.parameter) for unit, values in zip(units, new, strict=True)]


_Rule = Callable[..., tuple[mx.array, mx.array, mx.array]]
"""(parameter, gradient, first moment, second moment, settings) -> the new parameter and moments."""


def _guarded(plain: _Rule, fused: _Rule | None, is_finite: mx.array | None) -> Callable[..., _Values]:
    """Return the rule that changes nothing if `is_finite` is False, by the fused kernels if the device has them."""

    def update(old: _Values, gradient: mx.array | list[mx.array], **settings: object) -> _Values:
        if fused is not None and is_finite is not None:
            return _Values(*fused(old.parameter, gradient, old.first, old.second, is_finite=is_finite, **settings))
        new = plain(old.parameter, gradient, old.first, old.second, **settings)
        if is_finite is None:
            return _Values(*new)
        return _Values(*(mx.where(is_finite, *pair) for pair in zip(new, old, strict=True)))

    return update
