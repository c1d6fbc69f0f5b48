"""Short names for the fields of a sweep, and their values as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from nanochat.recipe.sweeps.cells import Cell, show_value

SEED = "seed"


def short_names(paths: Collection[str]) -> dict[str, str]:
    """Return the end of each dotted path that no other path has: `matrix_lr` for `pretrain.optimizer.matrix_lr`."""
    depths = dict.fromkeys(paths, 1)
    while True:
        names = {path: ".".join(path.split(".")[-depth:]) for path, depth in depths.items()}
        counts = Counter([*names.values(), SEED])
        unclear = [path for path, name in names.items() if counts[name] > 1 and name != path]
        if not unclear:
            return names
        for path in unclear:
            depths[path] += 1


def show_swept(value: object) -> str:
    """Return a value as a table shows it."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else show_value(value)


def differing_paths(cells: Sequence[Cell]) -> list[str]:
    """Return the swept fields, in the order of the recipe."""
    return list(cells[0].values) if cells else []
