"""The marginal effect of each field of a sweep on a result: its mean for each value, over everything else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nanochat.recipe.sweeps.labels import show_swept
from nanochat.runner.sweeps.results.cell_results import CellResult


@dataclass(frozen=True, kw_only=True)
class Level:
    """One value of a field, and the cells that have it."""

    label: str
    number: float | None
    """The value if it is a number, for an axis."""
    results: tuple[float, ...]
    mean: float
    spread: float | None
    """Standard deviation over seeds of the mean over the other fields. None for a single seed."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """How a result depends on a field, or on several fields that always change together."""

    paths: tuple[str, ...]
    levels: tuple[Level, ...]
    is_balanced: bool
    """Whether every value was combined with the same values of the other fields and the same seeds."""

    @property
    def size(self) -> float:
        """The difference between the largest and the smallest mean."""
        means = [level.mean for level in self.levels]
        return max(means) - min(means)


def list_effects(results: Sequence[CellResult], metric: str, *, zipped: Collection[str] = ()) -> list[Effect]:
    """Return the effect of each field on a metric, the largest first. Cells without a finite result are left out.

    The `zipped` fields change together, so they have one effect.
    """
    known = [result for result in results if math.isfinite(result.metrics.get(metric, math.nan))]
    groups: dict[tuple[str, ...], list[str]] = {}
    for path in results[0].entry.values if results else ():
        key = ("zip",) if path in zipped else tuple(_partition(results, path))
        groups.setdefault(key, []).append(path)
    effects = [_effect(tuple(paths), known, metric) for paths in groups.values()]
    return sorted((effect for effect in effects if len(effect.levels) > 1), key=lambda effect: -effect.size)


def _partition(results: Sequence[CellResult], path: str) -> list[str]:
    """Return for each cell which of the field's values it has, in a form that is the same for linked fields."""
    labels = [show_swept(result.entry.values[path]) for result in results]
    first = {label: str(labels.index(label)) for label in labels}
    return [first[label] for label in labels]


def _effect(paths: tuple[str, ...], results: Sequence[CellResult], metric: str) -> Effect:
    by_label: dict[str, list[CellResult]] = {}
    for result in results:
        label = ", ".join(show_swept(result.entry.values[path]) for path in paths)
        by_label.setdefault(label, []).append(result)
    levels = [_level(label, group, paths, metric) for label, group in by_label.items()]
    if all(level.number is not None for level in levels):
        levels.sort(key=lambda level: level.number or 0.0)
    return Effect(
        paths=paths,
        levels=tuple(levels),
        is_balanced=len({_others(group, paths) for group in by_label.values()}) == 1,
    )


def _others(group: Sequence[CellResult], paths: tuple[str, ...]) -> frozenset[str]:
    """Return the other properties of the cells of a level besides the value: the other fields, and their seeds."""
    rest = ({path: x for path, x in result.entry.values.items() if path not in paths} for result in group)
    return frozenset(f"{values} {result.entry.seed}" for values, result in zip(rest, group, strict=True))


def _level(label: str, group: Sequence[CellResult], paths: tuple[str, ...], metric: str) -> Level:
    values = [result.metrics[metric] for result in group]
    by_seed: dict[int, list[float]] = {}
    for result, value in zip(group, values, strict=True):
        by_seed.setdefault(result.entry.seed, []).append(value)
    means = [statistics.fmean(of_seed) for of_seed in by_seed.values()]
    number = group[0].entry.values[paths[0]]
    return Level(
        label=label,
        number=float(number) if isinstance(number, int | float) and not isinstance(number, bool) else None,
        results=tuple(values),
        mean=statistics.fmean(values),
        spread=statistics.stdev(means) if len(means) > 1 else None,
    )
