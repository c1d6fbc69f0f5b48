"""Every default that a fingerprint leaves out, as a table that is checked in, so that a changed one is noticed.

A fingerprint holds only what differs from its default: were a default changed silently, results computed under the old
one would be taken for results of the new one. `tests/plan/defaults.json` holds this table; its test says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import cast, get_args, get_origin

from pydantic import BaseModel, JsonValue

from nanochat.data import sources
from nanochat.data.builtin import stdlib_corpus
from nanochat.model.config import SMEAR_CHANNELS, SOFTCAP, GPTConfig
from nanochat.optim.groups import OptimizerConfig, build_groups
from nanochat.plan.fingerprint import CODE_VERSIONS
from nanochat.plan.identity import DERIVED_FIELDS, ORIGIN_FIELDS
from nanochat.plan.specs import StageName
from nanochat.recipe.schema import recipe as schema

Table = dict[str, JsonValue]

_SECTIONS: Mapping[StageName, type[BaseModel]] = {
    "tokenizer": schema.Tokenizer,
    "pretrain": schema.Pretrain,
    "base_eval": schema.BaseEval,
    "sft": schema.Sft,
    "chat_eval": schema.ChatEval,
}


def identity_defaults() -> dict[StageName, Table]:
    """Return what each stage's identity takes for granted, by dotted path; `*` stands for a name of the user's."""
    tables: dict[StageName, Table] = {}
    for stage, section in _SECTIONS.items():
        tables[stage] = dict(_walk(section, stage, DERIVED_FIELDS[stage])) | _source_defaults()
    for stage in ("pretrain", "sft"):
        tables[stage] |= _walk(schema.Optimizer, "pretrain.optimizer", frozenset())
        tables[stage] |= _numerics()
    return tables


def stale_defaults(recorded: Mapping[str, JsonValue]) -> list[str]:
    """Return what must be done where the recorded table {stage: {code, defaults}} is not that of the code."""
    advice = []
    for stage, table in identity_defaults().items():
        entry = cast(Mapping[str, JsonValue], recorded.get(stage, {}))
        code, old = cast(int, entry.get("code", 0)), cast(Table, entry.get("defaults", {}))
        changed = [path for path in old if path in table and old[path] != table[path]]
        for path in changed:
            if CODE_VERSIONS[stage] <= code:
                advice.append(
                    f"the default `{path}` of {stage} changed from {old[path]!r} to {table[path]!r}: raise "
                    f"CODE_VERSIONS[{stage!r}] in nanochat/plan/fingerprint.py above {code}, so that results computed "
                    "under the old default are not reused"
                )
        if not advice and (old != table or code != CODE_VERSIONS[stage]):
            advice.append(f"the table of {stage} is out of date: write it anew")
    return advice


def recorded_form() -> dict[str, JsonValue]:
    """Return the table as it is checked in."""
    return {
        stage: {"code": CODE_VERSIONS[stage], "defaults": dict(sorted(table.items()))}
        for stage, table in identity_defaults().items()
    }


def _walk(section: type[BaseModel], prefix: str, without: frozenset[str]) -> Iterator[tuple[str, JsonValue]]:
    for name, field in section.model_fields.items():
        if name in without:
            continue
        inner = list(_sections_in(field.annotation))
        for one in inner:
            label = ".*" if get_origin(field.annotation) is dict else ""
            kind = f"({one.__name__})" if len(inner) > 1 else ""
            yield from _walk(one, f"{prefix}.{name}{label}{kind}", frozenset())
        if not inner and not field.is_required():
            default: JsonValue = field.get_default(call_default_factory=False)
            yield f"{prefix}.{name}", list(default) if isinstance(default, tuple) else default


def _sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    if _is_section(annotation):
        yield cast(type[BaseModel], annotation)
    for argument in get_args(annotation):
        yield from _sections_in(argument)


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _source_defaults() -> Table:
    """Return the defaults of sources, those included that the data room fills in."""
    return {
        **dict(_walk(schema.Source, "sources.*", ORIGIN_FIELDS)),
        "held out, by hash": sources.DEFAULT_VALIDATION_FRAC,
        "held out, by hash, python-stdlib": stdlib_corpus.VALIDATION_FRAC,
    }


def _numerics() -> Table:
    """Return the constants of architectures and optimizers that a recipe picks by a word."""
    table: Table = {f"model.{name}": value for name, value in GPTConfig().to_dict().items()}
    table |= {"softcap": SOFTCAP, "smear channels": SMEAR_CHANNELS}
    current = GPTConfig(architecture="current")
    for config in (GPTConfig(), current):
        table |= {f"architecture {config.architecture}.{name}": value for name, value in asdict(config.variant).items()}
    for optimizer in (OptimizerConfig(), OptimizerConfig(variant="current")):
        for group in build_groups(current, optimizer, tokens_per_step=2**19):
            settings = {name: value for name, value in asdict(group).items() if name not in ("names", "role")}
            label = f"optimizer {optimizer.variant}.{group.role}"
            table |= {f"{label}.{name}": _plain(value) for name, value in settings.items()}
    return table


def _plain(value: object) -> JsonValue:
    return list(value) if isinstance(value, tuple) else cast(JsonValue, value)
