"""Loads, plans and runs a recipe from Python."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat import runtime
from nanochat.api.runs import Run
from nanochat.errors import RecipeError
from nanochat.recipe import load
from nanochat.recipe.load import LoadedRecipe

Overrides = Mapping[str, object] | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage of a plan, and what it would cost. An estimate is None if it is not known."""

    name: str
    action: Literal["cached", "resume", "run"]
    """Whether its result is there already, or it would continue or start."""
    reason: str
    """Why."""
    tokens: int | None
    flops: float | None
    seconds: float | None
    peak_memory_bytes: int | None
    disk_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages and costs of a run of a recipe. Shown as text or in a notebook, as `nanochat-run plan` prints it."""

    recipe: str
    """The name of the recipe."""
    stages: tuple[PlannedStage, ...]
    problems: tuple[str, ...]
    """The problems to fix before the recipe can run."""
    text: str

    def __str__(self) -> str:
        """Return the plan as text."""
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text)}</pre>"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    stage: str
    """The number and the name of the stage, or what happens before the first one."""
    fraction: float
    """The finished share of this stage, from 0 to 1."""
    text: str
    """The step, the loss, the remaining time and the like, for people."""


def load_recipe(recipe: str | Path, overrides: Overrides = ()) -> LoadedRecipe:
    """Return a validated recipe: its values as `.recipe`, and the places where they were written.

    Args:
        recipe: a path, or the name of a recipe that comes with nanochat.
        overrides: values by their dotted paths, such as `{"pretrain.horizon.tokens": "3M"}`, or texts `KEY=VALUE` as
            `--set` takes them.

    Raises:
        RecipeError: the recipe is wrong. The message lists all errors.
    """
    return load.load_recipe(Path(recipe), _settings(overrides))


def plan(recipe: str | Path | LoadedRecipe, overrides: Overrides = (), *, base_dir: str | Path | None = None) -> Plan:
    """Return the stages that a run of a recipe would compute, and their cost. Nothing is computed or downloaded.

    Args:
        recipe: a path, the name of a recipe that comes with nanochat, or what `load_recipe` returned.
        overrides: as for `load_recipe`.
        base_dir: the folder with the results of all runs. Default: `NANOCHAT_BASE_DIR` or `~/.cache/nanochat`.

    Raises:
        RecipeError: the recipe is wrong, or has a section `sweep`.
    """
    from nanochat.runner.preflight.plan_checks import check_plan
    from nanochat.runner.preflight.plan_report import plan_report_text
    from nanochat.runner.preflight.prepare import prepare, select_stages

    prepared = prepare(_load_one(recipe, overrides), runtime.base_dir(base_dir))
    lookups, checks = prepared.look_up_cache(), check_plan(prepared)
    stages = [
        PlannedStage(
            name=lookup.stage.name,
            action=lookup.action,
            reason=lookup.reason,
            tokens=lookup.stage.estimate.tokens,
            flops=lookup.stage.estimate.flops,
            seconds=lookup.stage.estimate.seconds,
            peak_memory_bytes=lookup.stage.estimate.peak_memory_bytes,
            disk_bytes=lookup.stage.estimate.disk_bytes,
        )
        for lookup in lookups
    ]
    return Plan(
        recipe=prepared.plan.recipe_name,
        stages=tuple(stages),
        problems=(*prepared.problems, *checks.problems),
        text=plan_report_text(prepared, lookups, select_stages(prepared.plan), checks),
    )


def run(
    recipe: str | Path | LoadedRecipe,
    overrides: Overrides = (),
    *,
    only: str | None = None,
    first: str | None = None,
    last: str | None = None,
    force: Sequence[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
    on_line: Callable[[str], None] | None = print,
    base_dir: str | Path | None = None,
) -> Run:
    """Run the stages of a recipe that are not finished yet, each in a process of its own, and return the run.

    A signal to stop, such as that of the stop button of a notebook, saves the run; the same call continues it.

    Args:
        recipe: a path, the name of a recipe that comes with nanochat, or what `load_recipe` returned.
        overrides: as for `load_recipe`.
        only: run this stage alone.
        first: run this stage and those after it.
        last: stop after this stage.
        force: stages to run even if they are finished; `["all"]` for all of them.
        on_progress: called a few times a second.
        on_line: called with each line that `nanochat-run` would print; None drops them.
        base_dir: the folder with the results of all runs. Default: `NANOCHAT_BASE_DIR` or `~/.cache/nanochat`.

    Raises:
        NanochatError: the recipe is wrong, a stage failed, an expectation was not met, and so on; see
            `nanochat.errors`.
    """
    from nanochat.runner import pipeline
    from nanochat.runner.preflight.run_context import RunRequest

    loaded, base = _load_one(recipe, overrides), runtime.base_dir(base_dir)
    runtime.disable_telemetry()
    request = RunRequest(
        base=base,
        folder=Path.cwd(),
        command=loaded.command(),
        only=only,
        first=first,
        last=last,
        force=tuple(force),
    )
    return Run(pipeline.run_recipe(loaded, request, _Callbacks(on_line, on_progress)), base)


class _Callbacks:
    """A display that passes lines and progress to the callbacks of the caller."""

    def __init__(self, on_line: Callable[[str], None] | None, on_progress: Callable[[Progress], None] | None) -> None:
        self._on_line, self._on_progress = on_line, on_progress

    def log_line(self, text: str) -> None:
        if self._on_line is not None:
            self._on_line(text)

    def show_progress(self, title: str, fraction: float, text: str) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(stage=title, fraction=fraction, text=text))

    def clear_progress(self) -> None:
        """Do nothing: the next line or progress follows."""


def _load_one(recipe: str | Path | LoadedRecipe, overrides: Overrides) -> LoadedRecipe:
    """Return the recipe of a single run."""
    if isinstance(recipe, LoadedRecipe):
        settings = (*recipe.overrides, *_settings(overrides))
        loaded = load.load_recipe(Path(recipe.reference), settings) if overrides else recipe
    else:
        loaded = load_recipe(recipe, overrides)
    if loaded.recipe.sweep is not None:
        raise RecipeError(f"{loaded.reference} is a sweep of many runs; start it with `{loaded.command()}`")
    return loaded


def _settings(overrides: Overrides) -> tuple[str, ...]:
    """Return overrides as texts `KEY=VALUE`. Text values are taken as they are, as on the command line."""
    if isinstance(overrides, str):
        raise TypeError(f"overrides are a mapping or a list of texts KEY=VALUE, not the text {overrides!r}")
    if isinstance(overrides, Mapping):
        return tuple(f"{key}={_as_yaml(key, value)}" for key, value in overrides.items())
    return tuple(overrides)


def _as_yaml(key: str, value: object) -> str:
    """Return a value as `--set` takes it. Numbers and arrays of numpy are numbers and lists, and paths are texts."""

    def plain(inner: object) -> object:
        if hasattr(inner, "tolist"):
            return inner.tolist()
        if isinstance(inner, Path):
            return str(inner)
        kind = type(inner).__name__
        raise RecipeError(
            f"`{key}`: {inner!r} is a `{kind}`; give a number, a text, true, false, null, or lists of them"
        )

    return value if isinstance(value, str) else json.dumps(value, default=plain)
