"""The defaults that fingerprints leave out, recorded in `defaults.json`.

A fingerprint holds only the fields that differ from their defaults. If a default changed silently, a result computed
under the old one would be reused as a result of the new one.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import cast, get_args, get_origin

from pydantic import BaseModel, JsonValue

from nanochat.data.places.builtin import stdlib_corpus
from nanochat.data.sources.source_spec import DEFAULT_VALIDATION_FRAC
from nanochat.model.config import SMEAR_CHANNELS, SOFTCAP, GPTConfig
from nanochat.optim.groups import OptimizerConfig, build_groups
from nanochat.plan.derive.identity import LIMIT_FIELDS, ORIGIN_FIELDS
from nanochat.plan.stages import STAGES
from nanochat.recipe.schema import recipe as schema
from nanochat.recipe.schema.recipe import STAGE_SECTIONS

TABLE = Path(__file__).with_name("defaults.json")
Table = dict[str, JsonValue]


def test_defaults_change_only_with_a_raised_code_version(check_golden: Callable[[str, Path], None]) -> None:
    """`pytest --update-golden` writes the table, but only if no code version is missing."""
    advice = _missing_versions(json.loads(TABLE.read_text()))
    assert not advice, "\n".join(advice)
    check_golden(json.dumps(_recorded_form(), indent=1) + "\n", TABLE)


def test_missing_versions_names_a_changed_default_and_what_to_do() -> None:
    recorded = json.loads(TABLE.read_text())
    recorded["pretrain"]["defaults"]["pretrain.buffer_documents"] = 999
    (advice,) = _missing_versions(recorded)
    assert "`pretrain.buffer_documents` of pretrain changed from 999 to 1000" in advice
    assert f"raise code_version of pretrain in nanochat/plan/stages.py above {recorded['pretrain']['code']}" in advice


def test_missing_versions_accepts_a_raised_version_and_a_new_field() -> None:
    recorded = json.loads(TABLE.read_text())
    recorded["sft"]["defaults"]["sft.buffer_conversations"] = 7
    recorded["sft"]["code"] = 0
    del recorded["tokenizer"]["defaults"]["tokenizer.max_chars"]
    assert _missing_versions(recorded) == []


def test_recorded_form_has_nested_and_alternative_sections() -> None:
    """One entry of each kind, with values from the schema's documentation."""
    table = _recorded_form()
    assert table["chat_eval"]["defaults"]["chat_eval.suites.*(ChatSuite).top_k"] == 50  # type: ignore[index,call-overload]
    assert table["base_eval"]["defaults"]["base_eval.suites.*(BpbSuite).split"] == "validation"  # type: ignore[index,call-overload]
    assert table["pretrain"]["defaults"]["optimizer plain.matrices.lr"] == 0.02  # type: ignore[index,call-overload]
    assert "sft.init_from" not in table["sft"]["defaults"]  # type: ignore[index,operator]


def _identity_defaults() -> dict[str, Table]:
    """Return the defaults that each stage's identity leaves out, by dotted path; `*` is a name the user chooses."""
    tables: dict[str, Table] = {}
    for stage in STAGES.values():
        section = STAGE_SECTIONS[stage.name]
        tables[stage.name] = dict(_walk(section, stage.name, stage.derived_fields)) | _source_defaults()
        if stage.trains:
            tables[stage.name] |= _walk(schema.Optimizer, "pretrain.optimizer", frozenset())
            tables[stage.name] |= _numerics()
    return tables


def _missing_versions(recorded: Mapping[str, JsonValue]) -> list[str]:
    """Return what to do about each default that differs from the recorded table {stage: {code, defaults}}."""
    advice = []
    for stage, table in _identity_defaults().items():
        entry = cast(Mapping[str, JsonValue], recorded.get(stage, {}))
        code, old = cast(int, entry.get("code", 0)), cast(Table, entry.get("defaults", {}))
        if STAGES[stage].code_version > code:
            continue
        advice += [
            f"the default `{path}` of {stage} changed from {old[path]!r} to {table[path]!r}: raise code_version of "
            f"{stage} in nanochat/plan/stages.py above {code}, so that no old result is reused"
            for path in old
            if path in table and old[path] != table[path]
        ]
    return advice


def _recorded_form() -> dict[str, JsonValue]:
    """Return the table as it is checked in."""
    return {
        stage: {"code": STAGES[stage].code_version, "defaults": dict(sorted(table.items()))}
        for stage, table in _identity_defaults().items()
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
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections_in(argument)


def _source_defaults() -> Table:
    """Return the defaults of sources, including those that the data room fills in."""
    return {
        **dict(_walk(schema.Source, "sources.*", ORIGIN_FIELDS | LIMIT_FIELDS)),
        "held out, by hash": DEFAULT_VALIDATION_FRAC,
        "held out, by hash, python-stdlib": stdlib_corpus.VALIDATION_FRAC,
    }


def _numerics() -> Table:
    """Return the constants of architectures and optimizers that a recipe selects by name."""
    table: Table = {f"model.{name}": value for name, value in GPTConfig().to_dict().items()}
    table |= {"softcap": SOFTCAP, "smear channels": SMEAR_CHANNELS}
    current = GPTConfig(architecture="current")
    for config in (GPTConfig(), current, GPTConfig(architecture="portable")):
        table |= {f"architecture {config.architecture}.{name}": value for name, value in asdict(config.variant).items()}
    for optimizer in (OptimizerConfig(), OptimizerConfig(variant="current")):
        for group in build_groups(current, optimizer, tokens_per_step=2**19):
            settings = {name: value for name, value in asdict(group).items() if name not in ("names", "role")}
            label = f"optimizer {optimizer.variant}.{group.role}"
            table |= {f"{label}.{name}": _plain(value) for name, value in settings.items()}
    return table


def _plain(value: object) -> JsonValue:
    return list(value) if isinstance(value, tuple) else cast(JsonValue, value)
