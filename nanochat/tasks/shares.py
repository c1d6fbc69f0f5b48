"""How many examples each task gives to a mixture. Pure arithmetic, and light: plans are made with it."""

from __future__ import annotations

from collections.abc import Sequence


def mixture_counts(available: Sequence[int], weights: Sequence[float | None]) -> tuple[int, ...]:
    """Return how many examples of each task are in a mixture.

    Without weights, all that are `available`. With them, shares of the whole are as the weights, and the whole is as
    large as `available` lets it be: the task that is shortest of its share gives all it has, each other one at least 1.
    """
    assert len(available) == len(weights), "one weight a task"
    given = [weight for weight in weights if weight is not None]
    if not given:
        return tuple(available)
    assert len(given) == len(weights), "all tasks have a weight, or none has"
    whole = min(count / weight for count, weight in zip(available, given, strict=True))
    return tuple(min(count, max(1, round(whole * weight))) for count, weight in zip(available, given, strict=True))
