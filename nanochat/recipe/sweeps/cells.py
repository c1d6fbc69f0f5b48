"""Compiles a recipe with a sweep into its cells: one valid recipe for each combination of values and each seed.

Values keep the places where the sweep lists them, so an error in a cell points at the value that causes it. All errors
of all cells are reported together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nanochat.recipe.load import LoadedRecipe, load_variant
from nanochat.recipe.merge.overrides import split_path, tree_of
from nanochat.recipe.merge.tree import Plain
from nanochat.recipe.merge.variables import escape
from nanochat.recipe.parsing.diagnostics import Diagnostic, LocatedRecipeError, Origin
from nanochat.recipe.parsing.flow import flow_text
from nanochat.recipe.parsing.nodes import Node
from nanochat.recipe.sweeps.combinations import (
    Setting,
    changes_of,
    corner_settings,
    list_seeds,
    list_settings,
    written_values,
)

_NAME_CHARS = 64
_DIGEST_CHARS = 8
_MAX_LISTED = 5


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    number: int
    """Counted from 1."""
    values: Mapping[str, Plain]
    """The value of each swept field by its dotted path, without the seed. Counts such as `1M` are numbers."""
    loaded: LoadedRecipe
    """The recipe of the run. It has no section `sweep`, and a name of its own."""

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.loaded.recipe.name

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.loaded.recipe.seed

    def describe(self) -> str:
        """Return the values and the seed on one line."""
        return ", ".join([*(f"{path}={show_value(value)}" for path, value in self.values.items()), f"seed={self.seed}"])


def show_value(value: object) -> str:
    """Return a value on one line, numbers as short as is exact: `1e16` and not `10000000000000000.0`."""
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        return short.replace("e+", "e")
    return flow_text(value)


def list_cells(loaded: LoadedRecipe, *, are_many_fine: bool = False) -> tuple[Cell, ...]:
    """Return the cells of a recipe with a sweep. Those of a search are examples, at the ends of each field's range.

    A LocatedRecipeError shows everything that is wrong with any of them, or that there are too many (see
    `list_settings`).
    """
    sweep = loaded.recipe.sweep
    if sweep is not None and sweep.search is not None:
        return make_cells(loaded, corner_settings(loaded), seeds=1)
    return make_cells(loaded, list_settings(loaded, are_many_fine=are_many_fine))


def make_cells(
    loaded: LoadedRecipe, settings: Sequence[Setting], *, first: int = 1, seeds: int | None = None
) -> tuple[Cell, ...]:
    """Return the cells of some settings: one for each setting and seed, the seed changing fastest.

    Args:
        first: the number of the first cell.
        seeds: how many of the sweep's seeds to use; None: all.
    """
    has_seeds, used = len(list_seeds(loaded)) > 1, list_seeds(loaded)[:seeds]
    written = [written_values(loaded, setting) for setting in settings]
    names = _names(loaded.recipe.name, [(values, seed) for values in written for seed, _ in used], has_seeds)
    cells: list[Cell] = []
    problems: dict[Diagnostic, list[int]] = {}
    for index, setting in enumerate(settings):
        for seed in used:
            number = first + len(cells)
            try:
                variant = _variant(loaded, setting, written[index], names[len(cells)], seed)
                values = {path: _value_in(variant, path, value) for path, value in written[index].items()}
                cells.append(Cell(number, values, variant))
            except LocatedRecipeError as error:
                cells.append(Cell(number, written[index], loaded))
                for diagnostic in error.diagnostics:
                    problems.setdefault(diagnostic, []).append(number)
    if problems:
        raise LocatedRecipeError(_say_which(diagnostic, cells, problems[diagnostic]) for diagnostic in problems)
    return tuple(cells)


def _variant(
    loaded: LoadedRecipe, setting: Setting, written: Mapping[str, Plain], name: str, seed: tuple[int, Origin | None]
) -> LoadedRecipe:
    place = loaded.key_origins["sweep",]
    changes = [*changes_of(setting), tree_of([("sweep", place)], Node(None, place))]
    changes.append(tree_of([("name", place)], Node(name, loaded.origins["name",])))
    flags = ["sweep=null", f"name={flow_text(name)}"]
    number, origin = seed
    if origin is not None:
        changes.append(tree_of([("seed", origin)], Node(number, origin)))
        flags.append(f"seed={number}")
    flags += [f"{path}={flow_text(escape(value))}" for path, value in written.items()]
    return load_variant(loaded, changes, [*loaded.overrides, *flags])


def _value_in(variant: LoadedRecipe, path: str, written: Plain) -> Plain:
    """Return a value as the recipe understands it, so that `1M` and `1000000` are shown as the same number."""
    value: object = variant.recipe
    for name in split_path(path):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
    return value if isinstance(value, str | int | float) else written


def _say_which(diagnostic: Diagnostic, cells: Sequence[Cell], numbers: Sequence[int]) -> Diagnostic:
    """Add to an error in some of the cells in which of them it is."""
    if len(numbers) == len(cells):
        return diagnostic
    first = next(cell for cell in cells if cell.number == numbers[0])
    if not first.values:
        return replace(diagnostic, help=f"in cell {first.number}")
    which = ", ".join(map(str, numbers[:_MAX_LISTED])) + (", ..." if len(numbers) > _MAX_LISTED else "")
    values = ", ".join(f"{path}={show_value(value)}" for path, value in first.values.items())
    where = f"in cell{'s' if len(numbers) > 1 else ''} {which}; cell {first.number} has {values}"
    return replace(diagnostic, help=f"{diagnostic.help} ({where})" if diagnostic.help else where)


def _names(sweep: str, cells: Sequence[tuple[Mapping[str, Plain], int]], has_seeds: bool) -> list[str]:
    """Return a name for the run of each cell, made of its values, so that it stays the same as the sweep grows.

    Values that cannot be part of a name, or are too long for it, are replaced by a digest of them.
    """
    names = []
    for values, seed in cells:
        words = [show_value(value).replace(".", "_") for value in values.values()]
        names.append("-".join([sweep, *words, *([f"s{seed}"] if has_seeds else [])]))
    counts = Counter(names)
    return [
        name
        if counts[name] == 1 and len(name) <= _NAME_CHARS and re.fullmatch(r"[A-Za-z0-9_-]+", name)
        else f"{sweep[: _NAME_CHARS - _DIGEST_CHARS - 1]}-{_digest(values, seed)}"
        for name, (values, seed) in zip(names, cells, strict=True)
    ]


def _digest(values: Mapping[str, Plain], seed: int) -> str:
    content = json.dumps([dict(values), seed], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_CHARS]
