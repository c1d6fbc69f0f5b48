"""What decides a stage's result, as a flat map of dotted recipe paths; `fingerprint` hashes it.

Fields at their schema default are left out, so that a new field leaves old caches valid. What the plan derives stands
in place of the dial it came from (steps for a horizon in tokens, the width for a depth), so that two ways of writing
the same computation are one, and a changed derivation is a changed identity. Not in it: `run`, `tracking`, names,
paths and `init_from` (contents enter as digests).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import assert_never

from pydantic import BaseModel, JsonValue

from nanochat.data.sources import SourceSpec
from nanochat.model.config import GPTConfig
from nanochat.plan.derive.evals import bpb_source
from nanochat.plan.specs import BaseEvalSpec, ChatEvalSpec, PretrainSpec, SftSpec, StageName, StageSpec, TokenizerSpec
from nanochat.recipe.schema import recipe as schema

Fields = dict[str, JsonValue]

ORIGIN_FIELDS = frozenset({"uri", "revision", "path", "builtin"})
"""Say where a source is, which its digest replaces."""
DERIVED_FIELDS: Mapping[StageName, frozenset[str]] = {
    "tokenizer": frozenset(),
    "pretrain": frozenset({"init_from", "horizon", "tokens_per_step", "schedule"}),
    "base_eval": frozenset({"init_from"}),
    "sft": frozenset({"init_from", "horizon", "tokens_per_step", "sequence_len", "lr_scale", "schedule"}),
    "chat_eval": frozenset({"init_from"}),
}
"""Fields of a stage's section in whose place a derived value or a digest stands."""


def identity_fields(recipe: schema.Recipe, spec: StageSpec) -> Fields:
    """Return the fields of the recipe and the plan that decide the stage's result, by dotted path."""
    own = _own_fields(recipe, spec)
    for source in stage_sources(spec):
        section = recipe.sources[source.name]
        own |= _nondefault(section, f"sources.{source.name}", without=ORIGIN_FIELDS)
    return own


def stage_sources(spec: StageSpec) -> tuple[SourceSpec, ...]:
    """Return the sources a stage reads, each once, in the order of their names."""
    by_name = {source.name: source for source in _read_by(spec)}
    return tuple(by_name[name] for name in sorted(by_name))


def _read_by(spec: StageSpec) -> Iterable[SourceSpec]:
    match spec:
        case TokenizerSpec():
            return [spec.source]
        case PretrainSpec():
            return [item.source for item in spec.data]
        case SftSpec():
            return [item.source for item in spec.data]
        case BaseEvalSpec():
            return [suite.source for suite in spec.suites.values()]
        case ChatEvalSpec():
            return [suite.source for suite in spec.suites.values()]
        case _:
            assert_never(spec)


def _own_fields(recipe: schema.Recipe, spec: StageSpec) -> Fields:
    match spec:
        case TokenizerSpec():
            assert recipe.tokenizer is not None
            return _nondefault(recipe.tokenizer, "tokenizer")
        case PretrainSpec():
            assert recipe.pretrain is not None
            return _model_fields(spec.model) | _pretrain_fields(recipe.pretrain, spec)
        case BaseEvalSpec():
            assert recipe.base_eval is not None
            return _base_eval_fields(recipe.base_eval, recipe.pretrain)
        case SftSpec():
            assert recipe.sft is not None
            return _sft_fields(recipe.sft, recipe.pretrain, spec)
        case ChatEvalSpec():
            assert recipe.chat_eval is not None
            return _nondefault(recipe.chat_eval, "chat_eval", without=DERIVED_FIELDS["chat_eval"])
        case _:
            assert_never(spec)


def _model_fields(config: GPTConfig) -> Fields:
    defaults = {field.name: field.default for field in fields(GPTConfig)}
    return {f"model.{name}": value for name, value in asdict(config).items() if value != defaults[name]}


def _pretrain_fields(section: schema.Pretrain, spec: PretrainSpec) -> Fields:
    return _nondefault(section, "pretrain", without=DERIVED_FIELDS["pretrain"]) | {
        "pretrain.horizon.steps": spec.steps,
        "pretrain.tokens_per_step": spec.tokens_per_step,
        "pretrain.optimizer.weight_decay": spec.weight_decay,
        "pretrain.schedule.kind": spec.schedule.kind,
        "pretrain.schedule.warmup_steps": spec.schedule.warmup_steps,
        "pretrain.schedule.warmdown_steps": spec.schedule.warmdown_steps,
        "pretrain.schedule.final_frac": spec.schedule.final_frac,
    }


def _sft_fields(section: schema.Sft, pretrain: schema.Pretrain | None, spec: SftSpec) -> Fields:
    inherited = _nondefault(pretrain.optimizer, "pretrain.optimizer") if pretrain else {}
    horizon = {"steps": spec.steps, "tokens": spec.tokens, "epochs": spec.epochs}
    return (
        inherited
        | _nondefault(section, "sft", without=DERIVED_FIELDS["sft"])
        | {f"sft.horizon.{name}": value for name, value in horizon.items() if value is not None}
        | {
            "sft.tokens_per_step": spec.tokens_per_step,
            "sft.sequence_len": spec.sequence_len,
            "sft.lr_scale": spec.optimizer.lr_scale,
            "sft.schedule.constant_frac": spec.constant_frac,
            "sft.schedule.final_frac": spec.final_frac,
        }
    )


def _base_eval_fields(section: schema.BaseEval, pretrain: schema.Pretrain | None) -> Fields:
    own = _nondefault(section, "base_eval", without=DERIVED_FIELDS["base_eval"])
    for name, suite in section.suites.items():
        if isinstance(suite, schema.BpbSuite):
            own[f"base_eval.suites.{name}.source"] = suite.source or bpb_source(pretrain)
    return own


def _nondefault(section: BaseModel, prefix: str, *, without: frozenset[str] = frozenset()) -> Fields:
    given = section.model_dump(mode="json", exclude_defaults=True, exclude=set(without))
    return _flatten(given, prefix) if given else {}


def _flatten(value: JsonValue, prefix: str) -> Fields:
    """Return the leaves by dotted path; an empty map is a leaf, so that its name is not lost."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: Fields = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}")
    return flat
