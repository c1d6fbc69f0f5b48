"""Checks references inside a recipe: the sources, stages and suites that it names must exist and fit together.

The checks work on plain data, so that they also run if other fields are invalid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.merge.tree import KeyPath, Plain
from nanochat.recipe.schema.recipe import STAGE_SECTIONS
from nanochat.recipe.schema.suggestions import did_you_mean
from nanochat.tasks.table import TASKS

_CREDENTIALS = re.compile("^[^/?#]*//[^/?#]*@|[?&][^=&]*(pass|pwd|token|secret|key)[^=&]*=", re.IGNORECASE)
"""Matches a URI with a user name, or with a parameter whose name suggests a secret."""
_EVALUATIONS = tuple(name for name, section in STAGE_SECTIONS.items() if "suites" in section.model_fields)


def check_references(data: Mapping[str, Plain]) -> list[FieldProblem]:
    """Return what is wrong with the references of a merged recipe."""
    checks = (_check_sources, _check_weights, _check_stages, _check_expectations, _check_secrets)
    return [problem for check in checks for problem in check(data)]


def _check_secrets(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    uri = _at(data, ("tracking", "uri"))
    if isinstance(uri, str) and _CREDENTIALS.search(uri):
        help_ = "set MLFLOW_TRACKING_URI to the whole address, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        yield FieldProblem(
            ("tracking", "uri"), "secret-in-recipe", "a recipe must not contain a user name, password or token", help_
        )


def _check_sources(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    sources = _map(data.get("sources"))
    for path, name, at_key in _source_names(data):
        if name not in sources:
            help_ = did_you_mean(name, sources) or "add it under `sources`"
            yield FieldProblem(path, "unknown-source", f"there is no source `{name}`", help_, at_key)
        else:
            yield from _check_fit(data, path, name, at_key)


def _source_names(data: Mapping[str, Plain]) -> Iterator[tuple[KeyPath, str, bool]]:
    """Yield the path and the name of each use of a source, and whether the name is a key."""
    for name in _map(_map(data.get("pretrain")).get("data")):
        yield ("pretrain", "data", name), name, True
    holders: list[KeyPath] = [("tokenizer",)]
    for section, field in (("base_eval", "suites"), ("sft", "data"), ("chat_eval", "suites")):
        holders += [(section, field, name) for name in _map(_map(data.get(section)).get(field))]
    for holder in holders:
        source = _at(data, (*holder, "source"))
        if isinstance(source, str):
            yield (*holder, "source"), source, False


def _check_fit(data: Mapping[str, Plain], path: KeyPath, name: str, at_key: bool) -> Iterator[FieldProblem]:
    """Report a source that does not contain what its user reads."""
    builtin = _at(data, ("sources", name, "builtin"))
    task = _at(data, (*path[:-1], "task"))
    facts = TASKS.get(task) if isinstance(task, str) else None
    reads_documents = path[0] in ("tokenizer", "pretrain") or (facts is not None and facts.reads == "documents")
    if reads_documents and builtin == "spelling":
        message = f"the source `{name}` contains words to spell, not documents"
        yield FieldProblem(
            path, "source-mismatch", message, "use `builtin: python-stdlib`, a `path` or a `uri`", at_key
        )
    elif facts is not None and facts.reads == "words":
        if builtin == "python-stdlib" or _at(data, ("sources", name, "uri")) is not None:
            message = f"the task `{task}` needs words, which the source `{name}` does not contain"
            help_ = "use a source with `builtin: spelling`, or the `path` of a text file with one word per line"
            yield FieldProblem(path, "source-mismatch", message, help_)
    elif not reads_documents and isinstance(task, str) and builtin is not None:
        message = f"the task `{task}` needs rows of data, which the built-in source `{name}` does not contain"
        yield FieldProblem(path, "source-mismatch", message, "use a source with a `uri` or a `path`")


def _check_weights(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    """Report tasks of the SFT mixture without a weight if other tasks have one."""
    items = _map(_at(data, ("sft", "data")))
    without = [name for name, item in items.items() if isinstance(item, dict) and item.get("weight") is None]
    if len(without) < len(items):
        for name in without:
            message = f"`{name}` has no `weight`, but other tasks of the mixture have one"
            help_ = "give all tasks a weight, or none"
            yield FieldProblem(("sft", "data", name), "missing-weight", message, help_, at_key=True)


def _check_stages(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    """Report stages that lack a model, a tokenizer or pretrained weights."""
    present = [name for name in STAGE_SECTIONS if isinstance(data.get(name), dict)]
    if not present and not any(name in data for name in STAGE_SECTIONS):
        help_ = f"add one of {', '.join(STAGE_SECTIONS)}"
        yield FieldProblem((), "missing-stage", "the recipe has no stage", help_, at_key=True)
    starts_fresh = "pretrain" in present and _at(data, ("pretrain", "init_from")) is None
    if starts_fresh:
        for needed in ("model", "tokenizer"):
            if needed not in data:
                message = f"`pretrain` needs the section `{needed}`"
                yield FieldProblem(
                    ("pretrain",),
                    "missing-stage",
                    message,
                    "add this section, or start from existing weights with `init_from`",
                    at_key=True,
                )
    for stage in present:
        upstream = STAGE_SECTIONS[stage].upstream
        has_model = any(name in data for name in upstream) or _at(data, (stage, "init_from")) is not None
        if stage != "pretrain" and upstream and not has_model:
            message = f"`{stage}` has no model to start from"
            help_ = f"add `{'` or `'.join(upstream)}`, or name a run or checkpoint with `{stage}.init_from`"
            yield FieldProblem((stage,), "missing-stage", message, help_, at_key=True)


def _check_expectations(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    for key in _map(data.get("expect")):
        stage, _, rest = key.partition(".")
        path: KeyPath = ("expect", key)
        if stage in _EVALUATIONS and rest:
            suite = rest.partition(".")[0]
            if rest in _composites(data, stage):
                continue
            if not isinstance(data.get(stage), dict):
                yield _unknown_result(path, f"the recipe has no `{stage}`", key, data)
            elif suite not in _map(_at(data, (stage, "suites"))):
                yield _unknown_result(path, f"`{stage}` has no suite `{suite}`", key, data)
        elif stage in STAGE_SECTIONS and STAGE_SECTIONS[stage].metrics and rest:
            if not isinstance(data.get(stage), dict):
                yield _unknown_result(path, f"the recipe has no `{stage}`", key, data)
            elif rest not in STAGE_SECTIONS[stage].metrics:
                yield _unknown_result(path, f"`{rest}` is not a metric of `{stage}`", key, data)
        else:
            yield _unknown_result(path, f"`{key}` is not a result", key, data)


def _composites(data: Mapping[str, Plain], stage: str) -> tuple[str, ...]:
    """Return the metrics over several tasks that the stage reports. Bits per byte is not part of them."""
    suites = _map(_at(data, (stage, "suites"))).values()
    return STAGE_SECTIONS[stage].metrics if any(_map(suite).get("task") != "bpb" for suite in suites) else ()


def _unknown_result(path: KeyPath, message: str, key: str, data: Mapping[str, Plain]) -> FieldProblem:
    results = []
    for stage in _EVALUATIONS:
        suites = _map(_at(data, (stage, "suites")))
        results += [f"{stage}.{name}" for name in (*suites, *_composites(data, stage))]
    for stage, section in STAGE_SECTIONS.items():
        if stage not in _EVALUATIONS and isinstance(data.get(stage), dict):
            results += [f"{stage}.{metric}" for metric in section.metrics]
    help_ = did_you_mean(key, results) or "write `base_eval.SUITE`, `chat_eval.SUITE` or `pretrain.METRIC`"
    return FieldProblem(path, "unknown-result", message, help_, at_key=True)


def _map(value: Plain) -> dict[str, Plain]:
    return value if isinstance(value, dict) else {}


def _at(data: Mapping[str, Plain], path: KeyPath) -> Plain:
    """Return the value at `path`, or None if there is none."""
    value: Plain = dict(data)
    for key in path:
        value = _map(value).get(str(key))
    return value
