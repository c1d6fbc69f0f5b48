"""The values that a search may try, as settings of cells.

Not here: which of them it tries (`runner.sweeps.search`).
"""

from __future__ import annotations

from collections.abc import Mapping

from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.parsing.nodes import Node
from nanochat.recipe.parsing.scalars import Scalar
from nanochat.recipe.schema.sweep_section import Space
from nanochat.recipe.sweeps.settings import Setting, SweptValue


def setting_of(loaded: LoadedRecipe, values: Mapping[str, Scalar]) -> Setting:
    """Return a setting with some values of a search, whose place is that of the field in `search.space`."""
    places = {path: loaded.key_origins["sweep", "search", "space", path] for path in values}
    return {path: SweptValue(Node(value, places[path]), places[path]) for path, value in values.items()}


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
