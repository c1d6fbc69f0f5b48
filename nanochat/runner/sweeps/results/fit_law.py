"""The scaling law of a sweep with `fit`: from the results of its cells to sentences and pictures."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.runner.scaling_laws.analysis import ScalingAnalysis, analyse
from nanochat.runner.scaling_laws.trained_models import TrainedModel
from nanochat.runner.store.sweep_state import SweepState
from nanochat.runner.sweeps.results.cell_results import CellResult

_STAGE = "pretrain"


def fit_law(state: SweepState, results: Sequence[CellResult]) -> ScalingAnalysis | None:
    """Return the law that the recipe asks for, fitted to the cells that have a result. None without any of them."""
    fit = state.section.fit
    if fit == "none":
        return None
    models = _trained_models(state, results)
    return analyse(models, fit) if models else None


def loss_name(state: SweepState) -> str:
    """Return the result that the law predicts."""
    return next(iter(state.section.rank_by or {}), f"{_STAGE}.loss")


def _trained_models(state: SweepState, results: Sequence[CellResult]) -> list[TrainedModel]:
    """Return a model for each cell that has a result.

    Its size is the number of scaling parameters, so that tokens per parameter mean the same as in `horizon.ratio`.
    """
    metric = loss_name(state)
    models = []
    for result in results:
        if result.run is None or metric not in result.metrics or f"{_STAGE}.tokens" not in result.metrics:
            continue
        params, tokens = result.run.state.entry(_STAGE).params, result.metrics[f"{_STAGE}.tokens"]
        models.append(
            TrainedModel(
                params=float(params["scaling_parameters"]),
                tokens=tokens,
                flops=float(params["flops_per_token"]) * tokens,
                loss=result.metrics[metric],
                seed=result.entry.seed,
            )
        )
    return models
