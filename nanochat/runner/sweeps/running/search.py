"""Runs a search: proposes settings, runs their cells, and lets the results decide what to propose next.

`optuna` (the extra `nanochat-run[search]`) proposes. A proposal depends only on the recipe's seed and on the results
before it. It is written to `sweep.json` before its cells start, so a killed search continues as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.errors import PreflightError
from nanochat.recipe.load import LoadedRecipe
from nanochat.recipe.parsing.scalars import Scalar
from nanochat.recipe.schema.field_types import number_of
from nanochat.recipe.schema.sweep_section import Search, Space, Sweep
from nanochat.recipe.sweeps.cells import make_cells
from nanochat.recipe.sweeps.combinations import list_seeds, setting_of
from nanochat.runner.process.interrupts import Interrupts
from nanochat.runner.store.sweep_state import SweepState
from nanochat.runner.sweeps.preparing.open_sweep import cell_entry
from nanochat.runner.sweeps.preparing.prepare_sweep import PreparedCell, prepare_cells
from nanochat.runner.sweeps.results.cell_results import Setting, group_by_setting, read_results
from nanochat.runner.sweeps.running.cell_runner import CellRunner
from nanochat.runner.sweeps.running.pruning import Losses, comparable, losses_of
from nanochat.runner.sweeps.running.slots import Slot
from nanochat.storage.layout import SweepFolder

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_ATTEMPTS = 50
"""After this number of proposals that were tried before, the space counts as exhausted."""
_DIGITS = 4
"""Significant digits of a proposed number."""
_LARGEST_SEED = 2**32


def check_engine() -> None:
    """Raise a PreflightError if optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise PreflightError(
            f"`sweep.search` needs optuna, which is not installed ({error}): pip install 'nanochat-run[search]'"
        ) from error


def propose(
    sweep: Sweep, tried: Sequence[Setting], count: int, *, seed: int, losses: Mapping[int, Losses] | None = None
) -> list[dict[str, Scalar]]:
    """Return up to `count` settings to try next, fewer if the space is exhausted.

    `tried` are all settings so far, with their results as far as their cells have any. `losses` holds the losses of
    pruned cells by number.
    """
    import optuna

    assert sweep.search is not None and sweep.ranking is not None, "the recipe has a search with a ranking"
    metric, order = sweep.ranking
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spaces = {path: _distribution(space) for path, space in sweep.search.space.items()}
    known = [_values_in(sweep.search, setting) for setting in tried]
    proposals: list[dict[str, Scalar]] = []
    for attempt in range(_ATTEMPTS + count):
        if len(proposals) == count:
            break
        number = len(tried) + len(proposals)
        sampler = optuna.samplers.TPESampler(seed=(seed + number + _ATTEMPTS * attempt) % _LARGEST_SEED)
        study = optuna.create_study(direction="minimize" if order == "min" else "maximize", sampler=sampler)
        for values, setting in zip(known, tried, strict=True):
            until = next((losses[x.entry.number] for x in setting.cells if losses and x.entry.number in losses), {})
            study.add_trial(_trial(values, spaces, setting.mean(metric), _signed(until, order)))
        values = {path: _rounded(sweep.search.space[path], x) for path, x in study.ask(spaces).params.items()}
        if values not in known and values not in proposals:
            proposals.append(values)
    return proposals


def _rounded(space: Space, value: Scalar) -> Scalar:
    """Return a proposed value with few digits, if any number between `min` and `max` may be tried."""
    if not isinstance(value, float) or space.choices is not None or space.step is not None:
        return value
    assert space.min is not None and space.max is not None, "the recipe is valid"
    return min(max(float(f"{value:.{_DIGITS}g}"), float(space.min)), float(space.max))


def _signed(losses: Losses, order: str) -> Losses:
    """Return losses such that the best is the smallest, or the largest if that is the order of the results."""
    return losses if order == "min" else {number: -loss for number, loss in losses.items()}


def _trial(
    values: Mapping[str, Scalar], spaces: Mapping[str, BaseDistribution], result: float | None, until: Losses
) -> Any:
    """Return a trial for optuna: finished, pruned with the losses `until` it was stopped, or failed."""
    from optuna.trial import TrialState, create_trial

    state = TrialState.COMPLETE if result is not None else TrialState.PRUNED if until else TrialState.FAIL
    return create_trial(
        params=dict(values), distributions=dict(spaces), value=result, state=state, intermediate_values=until
    )


def _values_in(search: Search, setting: Setting) -> dict[str, Scalar]:
    """Return the values of a setting as the space lists them: a count such as `1M` is stored as a number."""
    values: dict[str, Scalar] = {}
    for path, space in search.space.items():
        value: Any = setting.values[path]
        choices = space.choices or ()
        values[path] = next((choice for choice in choices if number_of(choice) == number_of(value)), value)
    return values


def _distribution(space: Space) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.choices is not None:
        return CategoricalDistribution(space.choices)
    assert space.min is not None and space.max is not None, "the recipe is valid"
    if isinstance(space.min, int) and isinstance(space.max, int):
        step = int(space.step or 1)
        last = space.min + (space.max - space.min) // step * step
        return IntDistribution(space.min, last, log=bool(space.log), step=step)
    high = float(space.max)
    if space.step is not None:
        high = space.min + math.floor((space.max - space.min) / space.step + 1e-9) * space.step
    return FloatDistribution(float(space.min), high, log=bool(space.log), step=space.step)


def run_search(
    loaded: LoadedRecipe,
    runner: CellRunner,
    folder: SweepFolder,
    state: SweepState,
    *,
    base: Path,
    slots: Sequence[Slot],
    interrupts: Interrupts,
) -> SweepState:
    """Run the cells that a search has chosen so far, and choose more until it has its trials. Return its state.

    Each batch has as many settings as fill the slots. They run together, and the next batch follows from their results.
    """
    search = state.section.search
    assert search is not None, "the recipe has a search"
    seeds, done = list_seeds(loaded), 0
    together = max(1, len(slots) // len(seeds))
    while True:
        results = read_results(state, base)
        tried = group_by_setting(results)
        first = done * len(seeds) + 1
        if done >= search.trials:
            return state
        if interrupts.count:
            runner.stop_before(first)
            return state
        if done < len(tried):
            batch = [_values_in(search, setting) for setting in tried[done : done + together]]
            cells = [x for x in _prepare(loaded, batch, first=first, base=base) if x.cell.number not in state.pruned]
            earlier = comparable(tried[:done], base) if search.prune is not None else None
            runner.run(cells, slots, interrupts, earlier=earlier)
            state = state.model_copy(update={"pruned": tuple(sorted({*state.pruned, *runner.pruned}))})
            done += len(batch)
        else:
            losses = {x.entry.number: losses_of(x, base) for x in results if x.status == "pruned"}
            count = min(search.trials - done, together)
            proposals = propose(state.section, tried, count, seed=loaded.recipe.seed, losses=losses)
            if not proposals:
                state = state.model_copy(update={"is_exhausted": True})
                state.write(folder.state)
                return state
            new = _prepare(loaded, proposals, first=first, base=base)
            state = state.model_copy(update={"cells": (*state.cells, *map(cell_entry, new))})
        state.write(folder.state)


def _prepare(
    loaded: LoadedRecipe, values: Sequence[Mapping[str, Scalar]], *, first: int, base: Path
) -> tuple[PreparedCell, ...]:
    settings = [setting_of(loaded, chosen) for chosen in values]
    return prepare_cells(loaded, make_cells(loaded, settings, first=first), base, may_repeat=True)
