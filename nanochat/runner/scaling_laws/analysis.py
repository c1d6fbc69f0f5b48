"""The scaling laws of a set of results, in sentences and as JSON values.

`isoflop` fits a parabola to the runs of each number of training FLOPs, and the law of parameters and tokens as far as
the runs suffice. `power` fits that law only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import JsonValue

from nanochat.plan.quantities import show_count, show_flops
from nanochat.plurals import several
from nanochat.runner.scaling_laws.isoflop import IsoflopCurve, IsoflopFit, fit_isoflop
from nanochat.runner.scaling_laws.loss_law import LossLaw, fit_loss_law
from nanochat.runner.scaling_laws.trained_models import CONFIDENCE, Optimum, TrainedModel, Uncertain, UnfitError

Fit = Literal["isoflop", "power"]

LARGER_BUDGET = 10
"""The analysis also predicts the best model for this many times the largest number of FLOPs of the runs."""


@dataclass(frozen=True, kw_only=True)
class ScalingAnalysis:
    """The fits of the results, and the reasons why others are missing."""

    points: tuple[TrainedModel, ...]
    isoflop: IsoflopFit | None
    law: LossLaw | None
    problems: tuple[str, ...]
    """One sentence for each fit that the results do not suffice for."""

    @property
    def larger_budget(self) -> float:
        return LARGER_BUDGET * max(point.flops for point in self.points)


def analyse(points: Sequence[TrainedModel], fit: Fit) -> ScalingAnalysis:
    """Return the fits of the results. Without results there are none."""
    isoflop, law, problems = None, None, []
    if fit == "isoflop":
        try:
            isoflop = fit_isoflop(points)
        except UnfitError as error:
            problems.append(f"no isoFLOP curves: {error}")
    try:
        law = fit_loss_law(points)
    except UnfitError as error:
        problems.append(f"no law of parameters and tokens: {error}")
    return ScalingAnalysis(points=tuple(points), isoflop=isoflop, law=law, problems=tuple(problems))


def describe_scaling(analysis: ScalingAnalysis) -> list[str]:
    """Return the analysis as sentences."""
    points = analysis.points
    settings = len({point.setting for point in points})
    seeds = f"; intervals in brackets hold {CONFIDENCE:.0%} of what other seeds would give"
    if len(points) == settings:
        seeds = "; no setting was repeated with another seed, so the numbers have no intervals"
    lines = [f"{several(settings, 'setting')}, {several(len(points), 'run')}{seeds}"]
    if analysis.isoflop is not None:
        lines += [_describe_curve(curve) for curve in analysis.isoflop.curves]
        lines += _describe_growth(analysis.isoflop, analysis.larger_budget)
    if analysis.law is not None:
        lines += _describe_law(analysis.law, analysis.larger_budget)
    return lines + list(analysis.problems)


def analysis_to_json(analysis: ScalingAnalysis) -> dict[str, JsonValue]:
    """Return the analysis as JSON values. An interval is null if no setting was repeated."""
    document: dict[str, JsonValue] = {
        "interval": CONFIDENCE,
        "points": [asdict(point) for point in analysis.points],
        "isoflop": None,
        "growth": None,
        "law": None,
        "problems": list(analysis.problems),
    }
    if (isoflop := analysis.isoflop) is not None:
        document["isoflop"] = [
            {
                "flops": curve.flops,
                "best": None if curve.best is None else asdict(curve.best),
                "problem": curve.problem,
            }
            for curve in isoflop.curves
        ]
        if (growth := isoflop.growth) is not None:
            params, tokens = map(asdict, growth.exponents)
            larger = asdict(growth.optimum(analysis.larger_budget))
            document["growth"] = {"params": params, "tokens": tokens, "larger": larger}
    if (law := analysis.law) is not None:
        document["law"] = {
            "coefficients": {name: asdict(value) for name, value in law.coefficients.items()},
            "misfit": law.misfit,
            "larger": asdict(law.optimum(analysis.larger_budget)),
        }
    return document


def _describe_curve(curve: IsoflopCurve) -> str:
    budget = f"{show_flops(curve.flops)} FLOPs"
    return f"{budget}: no best size, because {curve.problem}" if curve.best is None else _describe_best(curve.best)


def _describe_growth(isoflop: IsoflopFit, larger: float) -> list[str]:
    if isoflop.growth is None:
        return ["how the best size grows with compute is not known: that takes two budgets with a best size"]
    params, tokens = (_show(value, "{:.3g}".format) for value in isoflop.growth.exponents)
    return [
        f"the best size grows as FLOPs^{params}, the best number of tokens as FLOPs^{tokens}",
        f"by this growth, {_describe_best(isoflop.growth.optimum(larger))}",
    ]


def _describe_law(law: LossLaw, larger: float) -> list[str]:
    names = law.coefficients
    shown = ", ".join(f"{name} = {_show(value, '{:.4g}'.format)}" for name, value in names.items())
    return [
        f"loss = E + A / N^a + B / D^b, with N parameters and D tokens: {shown}; half of the settings are within "
        f"{law.misfit:.2%} of it",
        f"by this law, {_describe_best(law.optimum(larger))}",
    ]


def _describe_best(best: Optimum) -> str:
    loss = "" if best.loss is None else f", loss {_show(best.loss, '{:.4g}'.format)}"
    beyond = " (far beyond the runs)" if best.is_extrapolated else ""
    return (
        f"{show_flops(best.flops)} FLOPs{beyond}: best with {_show(best.params, show_count)} parameters and "
        f"{_show(best.tokens, show_count)} tokens, {_show(best.tokens_per_param, '{:.3g}'.format)} tokens per "
        f"parameter{loss}"
    )


def _show(value: Uncertain, show: Callable[[float], str]) -> str:
    if value.interval is None:
        return show(value.value)
    low, high = value.interval
    return f"{show(value.value)} [{show(low)}, {show(high)}]"
