"""The names of the results of a recipe, such as `base_eval.bpb`, for `expect` and the ranking of a sweep."""

from __future__ import annotations

from collections.abc import Mapping

from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.merge.tree import KeyPath, Plain, map_of, value_at
from nanochat.recipe.schema.recipe import STAGE_SECTIONS
from nanochat.recipe.schema.suggestions import did_you_mean

_EVALUATIONS = tuple(name for name, section in STAGE_SECTIONS.items() if "suites" in section.model_fields)
_WITH_OWN_METRICS = ("core", "lm_eval")
"""Kinds of suites whose metrics depend on a bundle of tasks or on a library."""
_BPB_METRICS = ("bytes", "tokens")
_SCORE_METRICS = ("stderr", "centred", "n", "prompts_cut", "examples_cut", "answers_cut", "ungraded")


def unknown_result(data: Mapping[str, Plain], path: KeyPath) -> FieldProblem | None:
    """Return why the last key of a path, such as `base_eval.bpb`, is not a result of the recipe. None if it is one."""
    key = str(path[-1])
    stage, _, metric = key.partition(".")
    suite, _, detail = metric.partition(".")
    suites = map_of(value_at(data, (stage, "suites")))
    details = None if data.get("sweep") else _suite_metrics(map_of(suites.get(suite)))  # cells may change the suite
    if metric in _results(data, stage) or (suite in suites and (details is None or detail in details)):
        return None
    if not metric or stage not in STAGE_SECTIONS or not STAGE_SECTIONS[stage].metrics:
        message = f"`{key}` is not a result"
    elif not isinstance(data.get(stage), dict):
        message = f"the recipe has no `{stage}`"
    elif metric in (unmeasured := _unmeasured(data, stage)):
        message = f"`{stage}` measures `{metric}` only with {unmeasured[metric]}"
    elif suite in suites:
        message = f"`{stage}.{suite}` has no metric `{detail}`"
        return FieldProblem(path, "unknown-result", message, did_you_mean(detail, details or ()), at_key=True)
    elif stage in _EVALUATIONS:
        message = f"`{stage}` has no suite `{suite}`"
    else:
        message = f"`{metric}` is not a metric of `{stage}`"
    results = [f"{name}.{result}" for name in STAGE_SECTIONS for result in _results(data, name)]
    help_ = did_you_mean(key, results) or "write `base_eval.SUITE`, `chat_eval.SUITE` or `pretrain.METRIC`"
    return FieldProblem(path, "unknown-result", message, help_, at_key=True)


def _results(data: Mapping[str, Plain], stage: str) -> tuple[str, ...]:
    """Return the names of a stage's results: its metrics, and for an evaluation also its suites.

    The metrics of an evaluation are averages over its tasks, which do not include bits per byte.
    """
    if not isinstance(data.get(stage), dict) or stage not in STAGE_SECTIONS:
        return ()
    suites = map_of(value_at(data, (stage, "suites")))
    has_metrics = stage not in _EVALUATIONS or any(map_of(suite).get("task") != "bpb" for suite in suites.values())
    metrics = STAGE_SECTIONS[stage].metrics if has_metrics else ()
    return (*suites, *(name for name in metrics if name not in _unmeasured(data, stage)))


def _suite_metrics(suite: Mapping[str, Plain]) -> tuple[str, ...] | None:
    """Return the metrics of a suite besides its result, such as `pass_at_4`. None if the recipe does not say them."""
    if suite.get("task") in _WITH_OWN_METRICS:
        return None
    if suite.get("task") == "bpb":
        return _BPB_METRICS
    samples = suite.get("num_samples", 1)
    if not isinstance(samples, int) or samples == 1 or not suite.get("temperature"):
        return _SCORE_METRICS
    ks = sorted({2**i for i in range(samples.bit_length())} | {samples})
    return (*_SCORE_METRICS, *(f"pass_at_{k}" for k in ks))


def _unmeasured(data: Mapping[str, Plain], stage: str) -> dict[str, str]:
    """Return the metrics of a stage that the recipe does not measure, each with the field that is missing."""
    section = map_of(data.get(stage))
    if stage == "rl" and not map_of(section.get("held_out")):
        return dict.fromkeys(("kl", "score", "score_before"), "`held_out`")
    if stage == "sft" and not any(map_of(task).get("validation") for task in map_of(section.get("data")).values()):
        return dict.fromkeys(("bpb", "val_loss"), "a task that has `validation`")
    return {}
