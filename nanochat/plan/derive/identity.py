"""The fields that decide a stage's result, as a flat map of dotted recipe paths, which `fingerprint` hashes.

Fields with their default value are left out, so that a new field leaves old caches valid. A derived value replaces the
field that it comes from: steps replace a horizon in tokens, the width replaces a depth. Two ways to write the same
computation are therefore equal, and a changed derivation changes the identity. Left out: `tracking`, names, paths and
`init_from`, whose contents enter as digests, and `run`, but for the validations that choose a stage's best model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path

from pydantic import BaseModel, JsonValue

from nanochat.model.config import GPTConfig
from nanochat.plan.derive.lm_eval_tasks import harness_version
from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec
from nanochat.plan.specs.suites import (
    AnyChatSuiteSpec,
    BpbSuiteSpec,
    ChatQuestionsSpec,
    LmEvalSuiteSpec,
    PythonSuiteSpec,
)
from nanochat.plan.specs.training import PretrainSpec, RlSpec, SftSpec
from nanochat.recipe.schema.recipe import Recipe
from nanochat.tasks.custom.python_files import PythonFile

Fields = dict[str, JsonValue]

ORIGIN_FIELDS = frozenset({"uri", "revision", "sha256", "path", "builtin"})
"""Fields that say where a source is. Its digest replaces them."""
LIMIT_FIELDS = frozenset({"max_bad_rows"})
"""Fields that decide whether a stage fails, but not its result."""


def source_fields(recipe: Recipe, name: str) -> Fields:
    """Return the fields of a source that decide what is read from it."""
    return nondefault_fields(recipe.sources[name], f"sources.{name}", without=ORIGIN_FIELDS | LIMIT_FIELDS)


def pretrain_identity(recipe: Recipe, spec: PretrainSpec) -> Fields:
    """Return the model's shape and what the plan derived for pretraining."""
    horizon = {"steps": spec.steps} if spec.minutes is None else {"minutes": spec.minutes}
    return (
        _choice_fields(recipe, spec)
        | _model_fields(spec.model)
        | {
            **{f"pretrain.horizon.{name}": value for name, value in horizon.items()},
            "pretrain.tokens_per_step": spec.tokens_per_step,
            "pretrain.optimizer.weight_decay": spec.weight_decay,
            **{f"pretrain.schedule.{name}": value for name, value in asdict(spec.schedule).items() if name != "steps"},
        }
    )


def sft_identity(recipe: Recipe, spec: SftSpec) -> Fields:
    """Return the values that the plan derived for sft, and the optimizer that it takes over from pretraining."""
    inherited = nondefault_fields(recipe.pretrain.optimizer, "pretrain.optimizer") if recipe.pretrain else {}
    horizon = {"steps": spec.steps, "tokens": spec.tokens, "epochs": spec.epochs, "minutes": spec.minutes}
    return (
        inherited
        | _choice_fields(recipe, spec)
        | {f"sft.horizon.{name}": value for name, value in horizon.items() if value is not None}
        | {
            "sft.tokens_per_step": spec.tokens_per_step,
            "sft.sequence_len": spec.sequence_len,
            "sft.lr_scale": spec.optimizer.lr_scale,
            "sft.schedule.constant_frac": spec.constant_frac,
            "sft.schedule.final_frac": spec.final_frac,
        }
    )


def rl_identity(recipe: Recipe, spec: RlSpec) -> Fields:
    """Return the horizon, and the optimizer that the stage takes over from pretraining."""
    inherited = nondefault_fields(recipe.pretrain.optimizer, "pretrain.optimizer") if recipe.pretrain else {}
    horizon = {"steps": spec.steps, "epochs": spec.epochs}
    return (
        inherited
        | {f"rl.horizon.{name}": value for name, value in horizon.items() if value is not None}
        | {"rl.lr_scale": spec.optimizer.lr_scale}
        | _suite_file_fields("rl.data", {name: item.suite for name, item in spec.data.items()})
        | _suite_file_fields("rl.held_out", spec.held_out)
    )


def _choice_fields(recipe: Recipe, spec: PretrainSpec | SftSpec) -> Fields:
    """Return the fields of `run` that decide which model is the best, if that is the one to pass on."""
    monitor = recipe.run.monitor
    names = ("validate_every_steps", "validate_tokens") if spec.hand_on == "best" else ()
    return {f"run.monitor.{name}": getattr(monitor, name) for name in names}


def base_eval_identity(_recipe: Recipe, spec: BaseEvalSpec) -> Fields:
    """Return the source of each suite that measures bits per byte, which the recipe may leave out.

    For tasks of lm-evaluation-harness, also return its version, and a digest of the task's own files for their path.
    """
    fields: Fields = {}
    for name, suite in spec.suites.items():
        path = f"base_eval.suites.{name}"
        match suite:
            case BpbSuiteSpec():
                fields[f"{path}.source"] = suite.source.name
            case LmEvalSuiteSpec():
                fields[f"{path}.lm_eval_version"] = harness_version()
                if suite.files:
                    fields[f"{path}.name"] = f"{Path(suite.name).name} {suite.files}"
    return fields


def chat_eval_identity(_recipe: Recipe, spec: ChatEvalSpec) -> Fields:
    """Return the digest of each suite's Python file, which takes the place of the file's path."""
    return _suite_file_fields("chat_eval.suites", spec.suites)


def _suite_file_fields(prefix: str, suites: Mapping[str, AnyChatSuiteSpec]) -> Fields:
    """Return the Python files of suites by dotted path, as their name and the digest of their source."""
    fields: Fields = {}
    for name, suite in suites.items():
        match suite:
            case ChatQuestionsSpec(program=PythonFile() as file):
                fields[f"{prefix}.{name}.program"] = f"{file} {file.digest}"
            case PythonSuiteSpec(file=file):
                fields[f"{prefix}.{name}.task.python"] = f"{file} {file.digest}"
    return fields


def _model_fields(config: GPTConfig) -> Fields:
    defaults = {field.name: field.default for field in fields(GPTConfig)}
    return {f"model.{name}": value for name, value in asdict(config).items() if value != defaults[name]}


def nondefault_fields(section: BaseModel, prefix: str, *, without: frozenset[str] = frozenset()) -> Fields:
    """Return the fields of a section that differ from their defaults, by dotted path."""
    given = section.model_dump(mode="json", exclude_defaults=True, exclude=set(without))
    return _flatten(given, prefix) if given else {}


def _flatten(value: JsonValue, prefix: str) -> Fields:
    """Return the leaves by dotted path. An empty map counts as a leaf, so that its name is kept."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: Fields = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}")
    return flat
