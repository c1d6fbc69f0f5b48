"""The combinations of values that a sweep runs: the grid, the lists that change together, and the conditions.

A search chooses combinations while it runs: `setting_of` gives one its form, and `corner_settings` those that are
checked before. Not here: the recipe of a combination (`cells`), and the choice (`runner.sweeps.running.search`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from nanochat.recipe.check.conditions import ConditionError, parse_condition
from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.merge.overrides import split_path, tree_of
from nanochat.recipe.merge.tree import KeyPath, Plain, merge, plain, resolve_paths
from nanochat.recipe.merge.variables import substitute
from nanochat.recipe.parsing.diagnostics import Diagnostic, LocatedRecipeError, Origin
from nanochat.recipe.parsing.nodes import Entry, Node
from nanochat.recipe.parsing.scalars import Scalar
from nanochat.recipe.schema.sweep_section import SWEPT_SECTIONS, Space, Sweep

MAX_CELLS = 1000
"""More cells than this need `--yes`: they are usually a mistake."""
_MAX_COMBINATIONS = 1_000_000


Setting: TypeAlias = dict[str, Entry]
"""A value for each swept field, and the place of the field's path, by that dotted path."""


def list_settings(loaded: LoadedRecipe, *, are_many_fine: bool = False) -> list[Setting]:
    """Return the combinations of `over` and `zip` that meet the conditions, the last field changing fastest.

    A LocatedRecipeError says that there are none, or more cells than `MAX_CELLS` unless `are_many_fine`.
    """
    sweep = loaded.recipe.sweep
    assert sweep is not None, "the recipe has a sweep"
    axes = list(_axes(loaded.tree))
    combinations = math.prod(len(axis) for axis in axes)
    if combinations > _MAX_COMBINATIONS:
        message = f"the sweep has {combinations:,} combinations, but at most {_MAX_COMBINATIONS:,} are allowed"
        raise LocatedRecipeError([_at(loaded, ("sweep",), "too-many-cells", message)])
    settings = [{path: value for part in parts for path, value in part.items()} for parts in itertools.product(*axes)]
    settings = _with_conditions(loaded, sweep, settings)
    cells = len(settings) * len(list_seeds(loaded))
    if cells > MAX_CELLS and not are_many_fine:
        message, help_ = f"the sweep has {cells:,} cells", f"more than {MAX_CELLS:,} cells need `--yes`"
        raise LocatedRecipeError([_at(loaded, ("sweep",), "too-many-cells", message, help_)])
    if not settings:
        message = "no combination of values meets all conditions"
        raise LocatedRecipeError([_at(loaded, ("sweep", "where"), "no-cells", message)])
    return settings


def list_seeds(loaded: LoadedRecipe) -> list[tuple[int, Origin | None]]:
    """Return the seeds of a sweep, each with its place. The place is None if it is the recipe's own seed."""
    recipe = loaded.recipe
    seeds = recipe.sweep.seeds if recipe.sweep is not None else None
    place: KeyPath = ("sweep", "seeds")
    match seeds:
        case None:
            return [(recipe.seed, None)]
        case int():
            return [(recipe.seed + number, loaded.origins[place]) for number in range(seeds)]
        case _:
            return [(seed, loaded.origins[*place, number]) for number, seed in enumerate(seeds)]


def _axes(tree: Node) -> Iterator[list[Setting]]:
    """Yield each group of fields that change together, as the list of their values."""
    for section in SWEPT_SECTIONS:
        columns = {
            key: [Entry(entry.key, item) for item in entry.node.value]
            for key, entry in _entries(tree, section).items()
            if isinstance(entry.node.value, tuple)
        }
        if section == "zip" and columns:
            yield [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        elif section == "over":
            yield from ([{key: value} for value in values] for key, values in columns.items())


def _entries(tree: Node, section: str) -> Mapping[str, Entry]:
    node = tree
    for name in ("sweep", section):
        entry = node.value.get(name) if isinstance(node.value, dict) else None
        if entry is None:
            return {}
        node = entry.node
    return node.value if isinstance(node.value, dict) else {}


def _with_conditions(loaded: LoadedRecipe, sweep: Sweep, settings: list[Setting]) -> list[Setting]:
    """Return the settings that meet the conditions of `where`."""
    texts = (sweep.where,) if isinstance(sweep.where, str) else sweep.where or ()
    for number, text in enumerate(texts):
        condition = parse_condition(text, list(settings[0]) if settings else [])
        try:
            settings = [setting for setting in settings if condition.is_met(written_values(loaded, setting))]
        except ConditionError as error:
            path = ("sweep", "where") if isinstance(sweep.where, str) else ("sweep", "where", number)
            raise LocatedRecipeError([_at(loaded, path, "bad-condition", str(error), error.help)]) from None
    return settings


def changes_of(setting: Setting) -> list[Node]:
    """Return a tree for each value of a setting, which is merged into the recipe like a `--set` flag."""
    return [tree_of([(name, swept.key) for name in split_path(path)], swept.node) for path, swept in setting.items()]


def written_values(loaded: LoadedRecipe, setting: Setting) -> dict[str, Plain]:
    """Return the values of a setting as plain data, with variables replaced and paths made absolute."""
    assert isinstance(loaded.tree.value, dict), "a recipe is a map"
    variables = {name: entry for name, entry in loaded.tree.value.items() if name == "vars"}
    tree, _ = substitute(functools.reduce(merge, changes_of(setting), Node(variables, loaded.tree.origin)))
    content = plain(resolve_paths(tree))
    values: dict[str, Plain] = {}
    for path in setting:
        value = content
        for name in split_path(path):
            assert isinstance(value, dict), "the tree has the paths of the setting"
            value = value[name]
        values[path] = value
    return values


def _at(loaded: LoadedRecipe, path: KeyPath, code: str, message: str, help: str = "") -> Diagnostic:  # noqa: A002
    origin = loaded.origins.get(path) or loaded.key_origins.get(path) or loaded.key_origins["sweep",]
    return Diagnostic(code, message, origin, help)


def setting_of(loaded: LoadedRecipe, values: Mapping[str, Scalar]) -> Setting:
    """Return a setting with some values of a search. Errors in it point at the field in `search.space`."""
    places = {path: loaded.key_origins["sweep", "search", "space", path] for path in values}
    return {path: Entry(places[path], Node(value, places[path])) for path, value in values.items()}


def corner_settings(loaded: LoadedRecipe) -> list[Setting]:
    """Return the settings in which one field has its smallest, its largest, or any of its choices, and the others
    their first. Each setting is returned once."""
    sweep = loaded.recipe.sweep
    assert sweep is not None and sweep.search is not None, "the recipe has a search"
    ends = {path: _ends(space) for path, space in sweep.search.space.items()}
    first = {path: values[0] for path, values in ends.items()}
    corners = [first, *({**first, path: value} for path, values in ends.items() for value in values[1:])]
    return [setting_of(loaded, corner) for corner in corners]


def _ends(space: Space) -> list[Scalar]:
    if space.choices is not None:
        return list(dict.fromkeys(space.choices))
    assert space.min is not None and space.max is not None, "the recipe is valid"
    return [space.min, space.max]
