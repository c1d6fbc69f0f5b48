"""The specifications of a recipe's sources, each with its use in the recipe: as text, chats or other rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nanochat.data.sources.source_spec import ReadAs, SourceSpec
from nanochat.recipe.schema.recipe import Recipe, Source
from nanochat.tasks.table import TASKS

_SECTIONS = ("base_eval", "sft", "rl", "chat_eval")


def source_specs(recipe: Recipe) -> dict[str, SourceSpec]:
    """Return the specification of each source by its name."""
    return {name: source_spec(name, section, _read_as(recipe, name)) for name, section in recipe.sources.items()}


def source_spec(name: str, section: Source, read_as: ReadAs | None = None) -> SourceSpec:
    """Return the specification of a source, which also holds the default for its held-out documents."""
    validation = section.validation
    return SourceSpec(
        name=name,
        path=(section.path,) if isinstance(section.path, str) else section.path,
        chat_map=section.map.chat_texts() if section.map else (),
        question_map=section.map.question_texts() if section.map else (),
        validation_shard=validation.shard if validation else None,
        validation_hash_frac=validation.hash_frac if validation else None,
        read_as=read_as,
        **section.model_dump(exclude={"path", "map", "validation"}),
    )


def _read_as(recipe: Recipe, name: str) -> ReadAs | None:
    """Return what a source is read as; None if it is several of these or words. An unused one is text.

    Suites that only monitor training must not change what is computed: they count for a source without another use.
    """
    sections = [getattr(recipe, section) for section in _SECTIONS]
    tasks = {task for section in sections for task in _tasks(section, ("data", "held_out", "suites"), name)}
    is_document = name in (recipe.pretrain.data if recipe.pretrain else ()) or (
        recipe.tokenizer is not None and recipe.tokenizer.source == name
    )
    if not tasks and not is_document:
        tasks = {*_tasks(recipe.run.monitor.evaluate, ("suites", "chat_suites"), name)}
    readings = {TASKS[task].reads for task in tasks}
    if readings <= {"documents"}:
        return "text"
    if "bundle" in readings:
        return "bundle"
    if is_document or readings != {"rows"}:
        return None
    return "chats" if tasks == {"conversations"} else "rows"


def _tasks(owner: object, fields: Sequence[str], name: str) -> Iterator[str]:
    """Yield the tasks that read a source, in the mixtures and suites of a section."""
    for field in fields:
        for item in getattr(owner, field, {}).values():
            if getattr(item, "source", None) == name:
                yield item.task
