"""Check the conditions in a recipe's `expect` section against the results of a run."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass

_CONDITION = re.compile(r"^\s*(<=|>=|==|<|>)\s*(\S+)\s*$")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq}


@dataclass(frozen=True)
class CheckedExpectation:
    """A condition and whether it is met. `value` is None if no stage reported the metric."""

    metric: str
    condition: str
    value: float | None
    is_met: bool

    def __str__(self) -> str:
        value = "not measured" if self.value is None else f"{self.value:.4f}"
        return f"{self.metric} {self.condition.strip()}: {value}, {'met' if self.is_met else 'NOT MET'}"


def check_expectations(expect: Mapping[str, str], metrics: Mapping[str, float]) -> list[CheckedExpectation]:
    """Return each condition with its outcome. The keys of both mappings are `stage.metric`.

    A condition on a metric that is missing or NaN is not met.
    """
    checked = []
    for metric, condition in expect.items():
        match = _CONDITION.match(condition)
        assert match is not None, f"the recipe schema accepted the condition {condition!r}"
        value = metrics.get(metric)
        is_met = value is not None and _COMPARE[match[1]](value, float(match[2]))
        checked.append(CheckedExpectation(metric, condition, value, is_met))
    return checked
