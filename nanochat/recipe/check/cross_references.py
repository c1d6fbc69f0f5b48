"""Checks references inside a recipe: the sources, stages and suites that it names must exist and fit together.

The checks work on plain data, so that they also run if other fields are invalid.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

from nanochat.data.hub.hub_source import is_on_hub
from nanochat.recipe.check.result_names import unknown_result
from nanochat.recipe.check.tracking_values import check_tracking
from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.merge.tree import KeyPath, Plain, map_of, value_at
from nanochat.recipe.schema.recipe import STAGE_SECTIONS, Source
from nanochat.recipe.schema.suggestions import did_you_mean
from nanochat.tasks.table import TASKS

_CREDENTIALS = re.compile("^[^/?#]*//[^/?#]*@|[?&][^=&]*(pass|pwd|token|secret|signature|key)[^=&]*=", re.IGNORECASE)
"""Matches a URI with a user name, or with a parameter whose name suggests a secret."""
_SECRET = "a recipe must not contain a user name, password or token"
_URI_WITH_REVISION = re.compile(r"(?P<name>hf://datasets/[^/]+/[^/@]+)@(?P<revision>[^/]*)(?P<rest>.*)")
_MONITORED = tuple(("run", "monitor", "evaluate", name) for name in ("suites", "chat_suites"))
_TASK_MAPS: tuple[KeyPath, ...] = (
    ("base_eval", "suites"),
    ("sft", "data"),
    ("rl", "data"),
    ("rl", "held_out"),
    ("chat_eval", "suites"),
    *_MONITORED,
)
"""The fields that hold tasks by name, each with a source."""
_GRADED: tuple[KeyPath, ...] = (("chat_eval", "suites"), ("rl", "data"), ("rl", "held_out"), _MONITORED[1])
"""The fields that may hold questions with a rule for grading."""
_SCORED = (("base_eval", "suites"), ("chat_eval", "suites"), ("rl", "held_out"))
"""The fields whose names become results of their stage."""


def check_references(data: Mapping[str, Plain]) -> list[FieldProblem]:
    """Return the problems of the references in a merged recipe."""
    checks = (
        *(_check_sources, _check_weights, _check_stages, _check_grading, _check_names, _check_expectations),
        *(_check_secrets, _check_addresses),
    )
    return [problem for check in (*checks, check_tracking) for problem in check(data)]


def _check_secrets(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    uri = value_at(data, ("tracking", "uri"))
    if isinstance(uri, str) and _CREDENTIALS.search(uri):
        help_ = "set MLFLOW_TRACKING_URI to the whole address, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        yield FieldProblem(("tracking", "uri"), "secret-in-recipe", _SECRET, help_)
    for name in map_of(data.get("sources")):
        uri = value_at(data, ("sources", name, "uri"))
        if isinstance(uri, str) and _CREDENTIALS.search(uri):
            help_ = "write the address without it; the password of a server can be in `~/.netrc`"
            yield FieldProblem(("sources", name, "uri"), "secret-in-recipe", _SECRET, help_)


def _check_addresses(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    """Report each `uri` that contains a revision (`@main`), and each `uri` that needs a `sha256` and has none."""
    for name in map_of(data.get("sources")):
        uri = value_at(data, ("sources", name, "uri"))
        if not isinstance(uri, str):
            continue
        needed, other = ("revision", "sha256") if is_on_hub(uri) else ("sha256", "revision")
        if value_at(data, ("sources", name, other)) is not None:
            message = f"`{other}` does not go with `{uri.partition('://')[0]}://`"
            yield FieldProblem(("sources", name, other), "conflict", message, f"use `{needed}`")
        elif uri.startswith("https://") and value_at(data, ("sources", name, "sha256")) is None:
            message = f"`sources.{name}` needs the field `sha256`, because the content of an address can change"
            help_ = "add the SHA-256 that its authors give, or the one that `sha256sum FILE` prints"
            yield FieldProblem(("sources", name), "missing-field", message, help_, at_key=True)
        match = _URI_WITH_REVISION.match(uri)
        if match is not None:
            message = "`uri` does not take a revision"
            help_ = f"write `uri: {match['name']}{match['rest']}` and `revision: {unquote(match['revision'])}`"
            yield FieldProblem(("sources", name, "uri"), "bad-format", message, help_)


def _check_sources(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    sources = map_of(data.get("sources"))
    without_effect = (None, Source.model_fields["column"].default)  # a resolved recipe gives all defaults
    for name, source in sources.items():
        if isinstance(source, dict) and source.get("map") is not None and source.get("column") not in without_effect:
            message = "`column` cannot be combined with `map`, which names the columns itself"
            yield FieldProblem(("sources", name, "column"), "exactly-one", message, "remove one of them")
    for path, name, at_key in _source_names(data):
        if name not in sources:
            help_ = did_you_mean(name, sources) or "add it under `sources`"
            yield FieldProblem(path, "unknown-source", f"there is no source `{name}`", help_, at_key)
        else:
            yield from _check_fit(data, path, name, at_key)


def _source_names(data: Mapping[str, Plain]) -> Iterator[tuple[KeyPath, str, bool]]:
    """Yield the path and the name of each use of a source, and whether the name is a key."""
    for name in map_of(map_of(data.get("pretrain")).get("data")):
        yield ("pretrain", "data", name), name, True
    holders: list[KeyPath] = [("tokenizer",)]
    for path in _TASK_MAPS:
        holders += [(*path, name) for name in map_of(value_at(data, path))]
    for holder in holders:
        source = value_at(data, (*holder, "source"))
        if isinstance(source, str):
            yield (*holder, "source"), source, False


def _check_fit(data: Mapping[str, Plain], path: KeyPath, name: str, at_key: bool) -> Iterator[FieldProblem]:
    builtin = value_at(data, ("sources", name, "builtin"))
    task = value_at(data, (*path[:-1], "task"))
    facts = TASKS.get(task) if isinstance(task, str) else None
    row_map = value_at(data, ("sources", name, "map"))
    reader = None if row_map is None else "questions" if "question" in map_of(row_map) else "conversations"
    if reader is not None and task != reader:
        message = f"the source `{name}` has a `map`, which only the task `{reader}` reads"
        yield FieldProblem(path, "source-mismatch", message, "give the other data a source without `map`", at_key)
    reads_documents = path[0] in ("tokenizer", "pretrain") or (facts is not None and facts.reads == "documents")
    if reads_documents and builtin == "spelling":
        message = f"the source `{name}` contains words to spell, not documents"
        help_ = "use `builtin: python-stdlib`, a `path` or a `uri`"
        yield FieldProblem(path, "source-mismatch", message, help_, at_key)
    elif facts is not None and facts.reads == "words":
        if builtin == "python-stdlib" or value_at(data, ("sources", name, "uri")) is not None:
            message = f"the task `{task}` needs words, which the source `{name}` does not contain"
            help_ = "use a source with `builtin: spelling`, or the `path` of a text file with one word per line"
            yield FieldProblem(path, "source-mismatch", message, help_)
    elif not reads_documents and isinstance(task, str) and builtin is not None:
        message = f"the task `{task}` needs rows of data, which the built-in source `{name}` does not contain"
        yield FieldProblem(path, "source-mismatch", message, "use a source with a `uri` or a `path`")


def _check_weights(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    """Report tasks of a mixture without a weight if other tasks have one."""
    for section in ("sft", "rl"):
        items = map_of(value_at(data, (section, "data")))
        without = [name for name, item in items.items() if isinstance(item, dict) and item.get("weight") is None]
        if len(without) < len(items):
            for name in without:
                message = f"`{name}` has no `weight`, but other tasks of the mixture have one"
                help_ = "give all tasks a weight, or none"
                yield FieldProblem((section, "data", name), "missing-weight", message, help_, at_key=True)


def _check_stages(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    if not any(name in data for name in STAGE_SECTIONS):
        help_ = f"add one of {', '.join(STAGE_SECTIONS)}"
        yield FieldProblem((), "missing-stage", "the recipe has no stage", help_, at_key=True)
    for stage, section in STAGE_SECTIONS.items():
        if not isinstance(data.get(stage), dict) or value_at(data, (stage, "init_from")) is not None:
            continue
        if stage == "pretrain":
            help_ = "add this section, or start from existing weights with `init_from`"
            for needed in ("model", "tokenizer"):
                if needed not in data:
                    message = f"`pretrain` needs the section `{needed}`"
                    yield FieldProblem((stage,), "missing-stage", message, help_, at_key=True)
        elif section.upstream and not any(name in data for name in section.upstream):
            message = f"`{stage}` has no model to start from"
            help_ = f"add `{'` or `'.join(section.upstream)}`, or name a run or checkpoint with `{stage}.init_from`"
            yield FieldProblem((stage,), "missing-stage", message, help_, at_key=True)


def _check_grading(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    """Report suites of questions whose rule for grading and whose other fields do not go together."""
    for path in ((*holder, name) for holder in _GRADED for name in map_of(value_at(data, holder))):
        fields = map_of(value_at(data, path))
        rule, shots = fields.get("grade"), fields.get("num_fewshot")
        if rule == "program" and fields.get("program") is None:
            help_ = "add `program: FILE.py:FUNCTION`"
            yield FieldProblem((*path, "grade"), "missing-field", "`grade: program` needs the field `program`", help_)
        if rule == "regex" and shots:
            message = "solved examples need answers, but with `grade: regex` the data has patterns"
            yield FieldProblem((*path, "num_fewshot"), "conflict", message, "remove it, or grade in another way")


def _check_names(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    """Report suites that have the name of another result of their stage."""
    for stage, field in _SCORED:
        for name in map_of(value_at(data, (stage, field))):
            section, (suite, _, suffix) = STAGE_SECTIONS[stage], name.rpartition("_")
            is_before = suffix == "before" and stage == "rl" and suite in map_of(value_at(data, (stage, field)))
            if is_before or name in {*section.metrics, *section.counts}:
                message = f"`{name}` is also the name of a result of `{stage}`"
                yield FieldProblem((stage, field, name), "duplicate-name", message, "choose another name", at_key=True)


def _check_expectations(data: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    for key in map_of(data.get("expect")):
        if (problem := unknown_result(data, ("expect", key))) is not None:
            yield problem
