"""Conditions of a recipe on the results of its run."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_CONDITION = re.compile(r"^\s*(<=|>=|==|<|>)\s*(\S+)\s*$")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Verdict:
    """One condition and what came of it. `value` is None where no stage reported the metric."""

    metric: str
    condition: str
    value: float | None
    is_met: bool

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.4f}"
        return f"{self.metric} {self.condition.strip()}: {value}, {'met' if self.is_met else 'NOT MET'}"


def check_expectations(expect: Mapping[str, str], results: Mapping[str, float]) -> list[Verdict]:
    """Return a verdict for each condition; `results` are named `stage.metric`.

    A metric that is missing or NaN fails.
    """
    verdicts = []
    for metric, condition in expect.items():
        match = _CONDITION.match(condition)
        assert match is not None, f"the schema let the condition {condition!r} through"
        value = results.get(metric)
        is_met = value is not None and _COMPARE[match[1]](value, float(match[2]))
        verdicts.append(Verdict(metric, condition, value, is_met))
    return verdicts
