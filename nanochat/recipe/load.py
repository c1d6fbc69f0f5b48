"""From a recipe file and `--set` flags to a validated `Recipe`, and where each of its values came from.

`load_recipe` finds everything that is wrong in one pass: the YAML, the schema, and references inside the recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import RecipeError
from nanochat.recipe.check.cross_references import check_references
from nanochat.recipe.check.validation import Finding, validate
from nanochat.recipe.merge.extends import Layered, Unreadable, read_layers
from nanochat.recipe.merge.overrides import read_override
from nanochat.recipe.merge.tree import KeyPath, drop_nulls, merge, origins_of, plain, resolve_paths
from nanochat.recipe.merge.variables import substitute
from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.source.diagnostics import Diagnostic, LocatedRecipeError, Origin
from nanochat.recipe.source.yaml_reader import Node, Refused

_NEEDS_ALL_FILES = {"missing-field", "missing-stage", "unknown-source", "unknown-result"}


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and where its values were written. What is not in `origins` has its default."""

    recipe: Recipe
    path: Path
    """The recipe file, as the caller named it."""
    origins: dict[KeyPath, Origin] = field(repr=False)
    """Path of each given value, sections included, to its place; the root is the empty path."""
    key_origins: dict[KeyPath, Origin] = field(repr=False)
    """Path of each given key to its place."""
    files: tuple[Path, ...]
    """Absolute paths of all files read, the recipe itself among them."""

    def diagnose(
        self,
        path: KeyPath,
        code: str,
        message: str,
        help: str = "",  # noqa: A002
        *,
        at_key: bool = False,
    ) -> Diagnostic:
        """Return a finding located at `path`: at its value (or key), else at the nearest section given above it."""
        finding = Finding(tuple(path), code, message, help, at_key)
        return _located(finding, self.origins, self.key_origins)

    def error(self, diagnostics: Iterable[Diagnostic]) -> RecipeError:
        """Return one error that shows all `diagnostics`, for the caller to raise."""
        return LocatedRecipeError(diagnostics)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Return the recipe at `path` with each `KEY=VALUE` of `overrides` written over it, later ones last.

    Raises `RecipeError`, whose text shows everything that is wrong.
    """
    layered = _read(Path(path))
    node, diagnostics = layered.node, list(layered.diagnostics)
    for number, override in enumerate(overrides, start=1):
        try:
            node = merge(node, read_override(override, number))
        except Refused as refused:
            diagnostics.append(refused.diagnostic)
    substituted = substitute(drop_nulls(node))
    node = resolve_paths(substituted.node)
    diagnostics += substituted.diagnostics
    origins, key_origins = origins_of(node)
    recipe, findings = validate(node)
    blamed = {found.origin for found in diagnostics}
    for finding in [*findings, *_references(node)]:
        located = _located(finding, origins, key_origins)
        is_known = finding.path in substituted.failed or (located.origin in blamed and not finding.at_key)
        if not is_known and (layered.is_complete or finding.code not in _NEEDS_ALL_FILES):
            diagnostics.append(located)
    if diagnostics:
        raise LocatedRecipeError(diagnostics)
    assert recipe is not None, "no findings, so the recipe is valid"
    return LoadedRecipe(recipe.model_copy(update={"vars": {}}), Path(path), origins, key_origins, layered.files)


def _read(path: Path) -> Layered:
    try:
        return read_layers(path)
    except Refused as refused:
        raise LocatedRecipeError([refused.diagnostic]) from None
    except Unreadable as unreadable:
        raise LocatedRecipeError(unreadable.diagnostics) from None


def _references(node: Node) -> list[Finding]:
    data = plain(node)
    assert isinstance(data, dict), "layers are maps"
    return check_references(data)


def _located(finding: Finding, origins: Mapping[KeyPath, Origin], keys: Mapping[KeyPath, Origin]) -> Diagnostic:
    path = finding.path
    if not finding.at_key and path in origins:
        origin = origins[path]
    else:
        while path and path not in keys:
            path = path[:-1]
        origin = keys[path] if path else origins[()]
    return Diagnostic(finding.code, finding.message, origin, finding.help)
