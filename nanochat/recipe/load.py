"""Loads a recipe: from a file and `--set` flags to a validated `Recipe` that knows where each value was written.

`load_recipe` reports everything that is wrong at once: YAML syntax, types and ranges, and references inside the recipe.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.recipe.check.cross_references import check_references
from nanochat.recipe.check.idle_values import find_idle_values, without_idle_values
from nanochat.recipe.check.sweep_checks import check_sweep
from nanochat.recipe.check.validation import FieldProblem, validate
from nanochat.recipe.merge.extends import read_with_bases
from nanochat.recipe.merge.overrides import read_override
from nanochat.recipe.merge.tree import KeyPath, drop_nulls, map_of, merge, origins_of, plain, resolve_paths, value_at
from nanochat.recipe.merge.variables import substitute
from nanochat.recipe.parsing.diagnostics import Diagnostic, LocatedRecipeError, Origin
from nanochat.recipe.parsing.nodes import Node
from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.shipped import find_recipe

_NEEDS_ALL_FILES = {"missing-field", "missing-stage", "unknown-source", "unknown-result"}
"""Errors that would be false alarms if an extended file could not be read."""


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe, and the places where its values were written."""

    recipe: Recipe
    path: Path
    """The recipe file."""
    reference: str
    """The path or the name of the recipe, as the caller gave it."""
    origins: dict[KeyPath, Origin] = field(repr=False)
    """Place of each given value and section by its path. The root has the empty path, and defaults have no place."""
    key_origins: dict[KeyPath, Origin] = field(repr=False)
    """Place of each given key by its path."""
    files: tuple[Path, ...]
    """Absolute paths of all files that were read, including the recipe itself."""
    tree: Node = field(repr=False)
    """The files and flags merged, before variables are replaced and nulls are dropped."""
    overrides: tuple[str, ...] = ()

    def command(self, *verb: str) -> str:
        """Return, for a shell, the `nanochat-run` command that applies a verb (none: run) to this recipe."""
        flags = (word for override in self.overrides for word in ("--set", override))
        return shlex.join(["nanochat-run", *verb, self.reference, *flags])

    def locate(self, problem: FieldProblem) -> Diagnostic:
        """Return the problem with its place, which is the nearest section above if the value is a default."""
        return _locate(problem, self.origins, self.key_origins)

    @functools.cached_property
    def effective(self) -> Recipe:
        """The recipe without its idle values, from which a plan is made."""
        return without_idle_values(self.recipe)

    def warnings(self) -> list[str]:
        """Return a sentence for each idle value of the recipe, with its place."""
        monitor = map_of(value_at(map_of(plain(self.tree)), ("run", "monitor")))
        has_no_samples = monitor.get("sample_every_steps", 0) is None
        located = map(self.locate, find_idle_values(self.recipe, has_no_samples=has_no_samples))
        return [f"{found.origin}: {found.message}; {found.help}" for found in located]


def load_recipe(reference: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Return a recipe with the `KEY=VALUE` settings of `overrides`, of which later ones win.

    `reference` is a path, or the name of a recipe that comes with nanochat; a file of this name wins. A wrong recipe
    raises a RecipeError that shows all errors.
    """
    path = find_recipe(reference)
    tree, files = read_with_bases(path)
    diagnostics = list(files.diagnostics)
    for number, override in enumerate(overrides, start=1):
        try:
            tree = merge(tree, read_override(override, number))
        except LocatedRecipeError as error:
            diagnostics += error.diagnostics
    place = (path, str(reference), tuple(files.nodes))
    return _build(tree, place, overrides, diagnostics, is_complete=files.is_complete)


def load_variant(loaded: LoadedRecipe, changes: Iterable[Node], overrides: Sequence[str]) -> LoadedRecipe:
    """Return a loaded recipe with some values changed, which keep the places where they were written.

    `overrides` are the flags that would have made the same recipe out of the file.
    """
    tree = functools.reduce(merge, changes, loaded.tree)
    return _build(tree, (loaded.path, loaded.reference, loaded.files), overrides)


def _build(
    tree: Node,
    place: tuple[Path, str, tuple[Path, ...]],
    overrides: Sequence[str],
    earlier: Sequence[Diagnostic] = (),
    *,
    is_complete: bool = True,
) -> LoadedRecipe:
    """Validate a merged tree, and raise what is wrong with it together with the `earlier` errors.

    `place` holds `path`, `reference` and `files` of the result. If the files are not `is_complete`, one of them could
    not be read.
    """
    path, reference, files = place
    diagnostics = list(earlier)
    node, variable_errors = substitute(drop_nulls(tree))
    node = resolve_paths(node)
    diagnostics += [error for _, error in variable_errors]
    failed = {path for path, _ in variable_errors}
    origins, key_origins = origins_of(node)
    recipe, problems = validate(node)
    data = plain(node)
    assert isinstance(data, dict), "a recipe is a map"
    reported_places = {diagnostic.origin for diagnostic in diagnostics}
    for problem in [*problems, *check_references(data), *check_sweep(data)]:
        located = _locate(problem, origins, key_origins)
        is_reported = problem.path in failed or (located.origin in reported_places and not problem.at_key)
        if not is_reported and (is_complete or problem.code not in _NEEDS_ALL_FILES):
            diagnostics.append(located)
    if diagnostics:
        raise LocatedRecipeError(diagnostics)
    assert recipe is not None, "without problems the recipe is valid"
    return LoadedRecipe(
        recipe=recipe.model_copy(update={"vars": {}}),
        path=path,
        reference=reference,
        origins=origins,
        key_origins=key_origins,
        files=files,
        tree=tree,
        overrides=tuple(overrides),
    )


def _locate(problem: FieldProblem, origins: Mapping[KeyPath, Origin], keys: Mapping[KeyPath, Origin]) -> Diagnostic:
    path = problem.path
    if not problem.at_key and path in origins:
        origin = origins[path]
    else:
        while path and path not in keys:
            path = path[:-1]
        origin = keys[path] if path else origins[()]
    return Diagnostic(problem.code, problem.message, origin, problem.help)
