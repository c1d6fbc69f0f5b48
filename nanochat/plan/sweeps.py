"""The plans of a sweep's cells together: which stages they share, what all of them cost, and cells that are the same.

Pure, like `compile`. Not here: which stages are cached already.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from nanochat.plan.compile import compile_plan
from nanochat.plan.estimate.estimate import Estimate, total
from nanochat.plan.plan import Plan, StagePlan
from nanochat.plan.specs.spec import StageName
from nanochat.recipe.check.idle_values import find_idle_values
from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.merge.overrides import split_path
from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.parsing.diagnostics import Diagnostic, LocatedRecipeError
from nanochat.recipe.schema.sweep_section import SWEPT_SECTIONS
from nanochat.recipe.sweeps.cells import Cell, list_cells


@dataclass(frozen=True)
class SharedStage:
    """A stage that is computed once, and the cells that use it."""

    stage: StagePlan
    cells: tuple[int, ...]
    """Their numbers."""


def compile_cells(
    loaded: LoadedRecipe,
    cells: Sequence[Cell],
    compile_cell: Callable[[LoadedRecipe], Plan] = compile_plan,
    *,
    may_repeat: bool = False,
) -> list[Plan]:
    """Return the plan of each cell. A LocatedRecipeError shows everything that is wrong with any of them.

    Two cells that compute the same are wrong, unless they `may_repeat`, as those that a search has chosen, or differ in
    an idle value that other cells use: of a grid of `temperature` and `top_k`, those with `temperature: 0` do.
    """
    plans: list[Plan] = []
    problems: dict[Diagnostic, list[Cell]] = {}
    for cell in cells:
        try:
            plans.append(compile_cell(cell.loaded))
        except LocatedRecipeError as error:
            for diagnostic in error.diagnostics:
                problems.setdefault(diagnostic, []).append(cell)
    if problems:
        raise LocatedRecipeError(_say_where(*item, count=len(cells)) for item in problems.items())
    if not may_repeat and (twins := _find_twins(loaded, cells, plans)):
        raise LocatedRecipeError(twins)
    return plans


def compile_sweep(
    loaded: LoadedRecipe, compile_cell: Callable[[LoadedRecipe], Plan] = compile_plan, *, are_many_fine: bool = False
) -> None:
    """Raise a LocatedRecipeError if a cell of a sweep is wrong, of a search in one of its examples."""
    compile_cells(loaded, list_cells(loaded, are_many_fine=are_many_fine), compile_cell)


def stages_until(plan: Plan, until: str | None) -> list[StagePlan]:
    """Return the stages of a plan up to the last one that is to run; None: all of them."""
    names = [stage.name for stage in plan.stages]
    return list(plan.stages if until is None else plan.stages[: names.index(until) + 1])  # type: ignore[arg-type]


def share_stages(plans: Mapping[int, Plan], until: str | None) -> list[SharedStage]:
    """Return every stage that the cells compute, once, in the order in which the cells would compute them.

    `plans` holds the plan of each cell by its number.
    """
    stages: dict[str, StagePlan] = {}
    users: dict[str, list[int]] = {}
    for number, plan in plans.items():
        keys = _keys(plan)
        for stage in stages_until(plan, until):
            stages.setdefault(keys[stage.name], stage)
            users.setdefault(keys[stage.name], []).append(number)
    return [SharedStage(stage, tuple(users[key])) for key, stage in stages.items()]


def total_cost(stages: Iterable[SharedStage]) -> Estimate:
    """Return the cost of computing all stages one after another. All results are kept, so their disk space adds up."""
    estimates = [shared.stage.estimate for shared in stages]
    kept = [e.disk_bytes if e.kept_disk_bytes is None else e.kept_disk_bytes for e in estimates]
    known = [size for size in kept if size is not None]
    return replace(total(estimates), kept_disk_bytes=sum(known) if known else None)


def _keys(plan: Plan) -> dict[StageName, str]:
    """Return a digest of everything that each stage's result depends on, as far as the plan knows it."""
    keys: dict[StageName, str] = {}
    for stage in plan.stages:
        sources = {x.name: stage.source_digests.get(x.name) or repr(x) for x in stage.sources}
        content = [dict(stage.identity), sources, [keys[name] for name in stage.upstream], stage.init_from]
        keys[stage.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return keys


def _find_twins(loaded: LoadedRecipe, cells: Sequence[Cell], plans: Sequence[Plan]) -> list[Diagnostic]:
    """Return an error for each cell that computes the same as an earlier one, at a value in which they differ."""
    sweep = loaded.recipe.sweep
    assert sweep is not None, "the recipe has a sweep"
    first: dict[tuple[str, ...], Cell] = {}
    problems: dict[Diagnostic, None] = {}
    idle = {cell.number: _idle_values(cell) for cell in cells}
    for cell, plan in zip(cells, plans, strict=True):
        keys = _keys(plan)
        twin = first.setdefault(tuple(keys[stage.name] for stage in stages_until(plan, sweep.until)), cell)
        differing = idle[twin.number] ^ idle[cell.number]
        if twin is not cell and not any(_is_used(path, value, cells, idle) for path, value in differing):
            problems[_twin_problem(loaded, twin, cell, sweep.until)] = None
    return list(problems)


def _idle_values(cell: Cell) -> set[tuple[KeyPath, str]]:
    recipe = cell.loaded.recipe
    paths = [problem.path for problem in find_idle_values(recipe, has_no_samples=False)]
    return {(path, repr(_value_at(recipe, path))) for path in paths}


def _is_used(path: KeyPath, value: str, cells: Iterable[Cell], idle: Mapping[int, set[tuple[KeyPath, str]]]) -> bool:
    """Return whether the value has an effect in any cell."""
    others = [cell for cell in cells if (path, value) not in idle[cell.number]]
    return any(repr(_value_at(cell.loaded.recipe, path)) == value for cell in others)


def _value_at(section: object, path: KeyPath) -> object:
    for key in path:
        section = section.get(key) if isinstance(section, dict) else getattr(section, str(key), None)
    return section


def _twin_problem(loaded: LoadedRecipe, first: Cell, second: Cell, until: str | None) -> Diagnostic:
    """Return an error at a value in which two cells differ, which may be the same number written in two ways."""
    places = {path: tuple(split_path(path)) for path in second.values}
    differing = [
        path
        for path, place in places.items()
        if first.values[path] != second.values[path]
        or first.loaded.origins.get(place) != second.loaded.origins.get(place)
    ]
    origins = [second.loaded.origins.get(places[path]) for path in differing]
    origins += [loaded.key_origins.get(("sweep", section, path)) for path in differing for section in SWEPT_SECTIONS]
    origin = next((x for x in origins if x is not None), loaded.key_origins.get(("sweep", "seeds")))
    what = " and ".join(f"`{path}`" for path in differing) or "their seed"
    up_to = f" up to `{until}`" if until else ""
    message = f"cells {first.number} and {second.number} compute the same{up_to}, although they differ in {what}"
    help_ = "list values that change the result, each of them once"
    return Diagnostic("same-cells", message, origin or loaded.key_origins["sweep",], help_)


def _say_where(diagnostic: Diagnostic, cells: Sequence[Cell], *, count: int) -> Diagnostic:
    if len(cells) == count:
        return diagnostic
    where = f"in cell {cells[0].number}: {cells[0].describe()}"
    return replace(diagnostic, help=f"{diagnostic.help} ({where})" if diagnostic.help else where)
