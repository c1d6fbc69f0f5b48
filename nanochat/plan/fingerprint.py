"""The fingerprint of a stage, and what changed between two of them.

The hashed document is {stage, code, seed, fields, sources, upstream}. `seed` is left out if the stage draws nothing at
random, `fields` is described in `derive.identity`, and `sources` and `upstream` hold the sha256 digests of what the
stage reads. How a stage is executed is not in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from pydantic import JsonValue

from nanochat.plan.derive.identity import source_fields
from nanochat.plan.plan import INIT_FROM, StagePlan
from nanochat.plan.specs.job import StageSpec, stage_sources
from nanochat.plan.stages import STAGES
from nanochat.recipe.schema.recipe import Recipe

Document = dict[str, JsonValue]
_MAP_ENTRY = re.compile(r"(?:pretrain|base_eval|sft|rl|chat_eval)\.(?:data|suites|held_out)\.[^.]+")
"""The path of a data set, task or suite, whose name is the user's. It has no defaults if a recipe does not name it."""


def identity(recipe: Recipe, spec: StageSpec) -> Document:
    """Return the part of a stage's document that depends on the recipe alone."""
    stage = STAGES[spec.stage]
    fields = stage.identity_fields(recipe, spec)
    for source in stage_sources(spec):
        fields |= source_fields(recipe, source.name)
    drawn: Document = {"seed": recipe.seed} if stage.draws else {}
    return {"stage": stage.name, "code": stage.code_version, **drawn, "fields": fields}


def document(stage: StagePlan, upstream_digests: Mapping[str, str]) -> Document:
    """Return the document that is hashed: the stage's identity and the digests of what it reads.

    `upstream_digests` holds the digest of each upstream stage by name, and of the starting weights under the key
    `init_from`; other digests in it are ignored.
    """
    known = stage.source_digests
    read = [*stage.upstream, INIT_FROM] if stage.init_from is not None else [*stage.upstream]
    missing = [f"upstream {name}" for name in read if name not in upstream_digests]
    missing += [f"source {source.name}" for source in stage.sources if source.name not in known]
    assert not missing, f"no digest for {', '.join(missing)} of stage {stage.name}"
    return {
        **stage.identity,
        "sources": {source.name: known[source.name] for source in stage.sources},
        "upstream": {name: upstream_digests[name] for name in read},
    }


def fingerprint_document(content: Mapping[str, JsonValue]) -> str:
    """Return the sha256 (64 hex digits) of canonical JSON: sorted keys, no blanks, ASCII, no NaN."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def explain(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> list[str]:
    """Return a line for each change between two documents (or identities)."""
    changes = []
    if old.get("code") != new.get("code"):
        changes.append(f"code version {_show(old.get('code'))} -> {_show(new.get('code'))}")
    if old.get("seed") != new.get("seed"):
        changes.append(f"seed: {_show(old.get('seed'))} -> {_show(new.get('seed'))}")
    before, after = _map(old, "fields"), _map(new, "fields")
    added, dropped = _entries(after) - _entries(before), _entries(before) - _entries(after)
    changes += [f"{entry} {'added' if entry in added else 'dropped'}" for entry in sorted(added | dropped)]
    for path in sorted(before.keys() | after.keys()):
        if (entry := _MAP_ENTRY.match(path)) is not None and entry[0] in added | dropped:
            continue
        if path not in before or path not in after or before[path] != after[path]:
            changes.append(f"{path}: {_field(before, path)} -> {_field(after, path)}")
    changes += _digest_changes(old, new, "sources", "source `{}`")
    return changes + _digest_changes(old, new, "upstream", "upstream {}")


def _digest_changes(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue], key: str, label: str) -> list[str]:
    before, after = _map(old, key), _map(new, key)
    changes = []
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            what = "changed" if name in before and name in after else "added" if name in after else "dropped"
            changes.append(f"{label.format(name)} {what}")
    return changes


def _map(content: Mapping[str, JsonValue], key: str) -> Mapping[str, JsonValue]:
    value = content.get(key, {})
    return value if isinstance(value, dict) else {}


def _entries(fields: Mapping[str, JsonValue]) -> set[str]:
    """Return the data sets, tasks and suites that a stage has, such as `sft.data.spelling`."""
    return {entry[0] for entry in map(_MAP_ENTRY.match, fields) if entry is not None}


def _field(fields: Mapping[str, JsonValue], path: str) -> str:
    return _show(fields[path]) if path in fields else "default"


def _show(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)
