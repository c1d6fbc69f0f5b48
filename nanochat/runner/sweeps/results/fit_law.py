"""Fits the scaling law that a sweep asks for with `fit` to the results of its cells."""

from __future__ import annotations

from nanochat.runner.scaling_laws.analysis import ScalingAnalysis, analyse
from nanochat.runner.scaling_laws.trained_models import TrainedModel
from nanochat.runner.store.sweep_state import SweepState
from nanochat.runner.sweeps.results.cell_results import SweepResults

_STAGE = "pretrain"


def fit_law(sweep: SweepResults) -> ScalingAnalysis | None:
    """Return the law that the recipe asks for, fitted to the cells that have a result. None without any of them."""
    fit = sweep.state.section.fit
    if fit == "none":
        return None
    models = _trained_models(sweep)
    return analyse(models, fit) if models else None


def loss_name(state: SweepState) -> str:
    """Return the result that the law predicts."""
    return state.section.ranking[0] if state.section.ranking is not None else f"{_STAGE}.loss"


def _trained_models(sweep: SweepResults) -> list[TrainedModel]:
    """Return a model for each cell that has a result.

    Its size is the number of scaling parameters, so that tokens per parameter mean the same as in `horizon.ratio`.
    """
    metric = loss_name(sweep.state)
    models = []
    for result in sweep.cells:
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
