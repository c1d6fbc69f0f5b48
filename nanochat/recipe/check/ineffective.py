"""Finds values that have no effect beside the other fields of a recipe, so that a plan can warn of them.

They are no errors, because a sweep or a `--set` flag may change the other field. Not here: fields that contradict each
other, which `cross_references` and the derivation of the plan refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from nanochat.model.config import VARIANTS
from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.schema.evaluation_sections import BpbSuite, Generation, QuestionsSuite
from nanochat.recipe.schema.execution_sections import Run
from nanochat.recipe.schema.export_section import Export
from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.schema.training_sections import Model, Optimizer, Pretrain
from nanochat.tasks.table import TASKS

_REMOVE = "remove it"


def find_ineffective(recipe: Recipe, *, has_no_samples: bool) -> Iterator[FieldProblem]:
    """Yield the fields of a valid recipe whose values have no effect, with the reason and what to do.

    `has_no_samples` says that the recipe writes `sample_every_steps: null`, which leaves its prompts out on purpose.
    """
    yield from _in_run(recipe.run, has_no_samples=has_no_samples)
    if recipe.tracking.kind == "none":
        yield from _without_effect(
            ("tracking",), recipe.tracking, ["register"], "beside `kind: none`", "use `kind: mlflow`"
        )
    yield from _in_sources(recipe)
    if recipe.model is not None:
        yield from _in_model(recipe.model)
    if recipe.pretrain is not None:
        yield from _in_pretrain(recipe.pretrain, recipe.model)
    if recipe.base_eval is not None and not recipe.base_eval.samples:
        yield from _without_effect(("base_eval",), recipe.base_eval, ["sample_tokens"], "without `samples`", "add some")
    if recipe.export is not None:
        yield from _in_export(recipe.export)
    for path, suites in _suites(recipe):
        for name, suite in suites.items():
            yield from _in_suite((*path, name), suite)


def _without_effect(
    path: KeyPath, section: BaseModel, names: list[str], beside: str, otherwise: str
) -> Iterator[FieldProblem]:
    """Yield a problem for each of the fields of the section at `path` that differ from their defaults.

    A resolved recipe, as a run keeps it, gives all fields.
    """
    for name in names:
        if getattr(section, name) != type(section).model_fields[name].get_default():
            where = ".".join(str(key) for key in (*path, name))
            message = f"`{where}` has no effect {beside}"
            yield FieldProblem((*path, name), "no-effect", message, f"{_REMOVE}, or {otherwise}", at_key=True)


def _in_run(run: Run, *, has_no_samples: bool) -> Iterator[FieldProblem]:
    path, monitor = ("run", "monitor"), run.monitor
    if monitor.sample_every_steps is None and not has_no_samples:
        yield from _without_effect(path, monitor, ["prompts"], "without `sample_every_steps`", "set that field")
    if not monitor.prompts:
        yield from _without_effect(path, monitor, ["sample_every_steps"], "without `prompts`", "add some")
    if run.distributed.processes == 1:
        names = ["backend", "hostfile"]
        yield from _without_effect(
            ("run", "distributed"), run.distributed, names, "with one process", "raise `processes`"
        )


def _in_sources(recipe: Recipe) -> Iterator[FieldProblem]:
    documents, used = _sources_of_documents(recipe), set(_used_sources(recipe))
    for name, source in recipe.sources.items():
        path = ("sources", name)
        if source.builtin is not None:
            names = ["column", "max_bad_rows", *(["max_files"] if source.builtin == "spelling" else [])]
            beside = f"beside `builtin: {source.builtin}`"
            yield from _without_effect(path, source, names, beside, "name a `path` or a `uri`")
        if name in used - documents:
            beside, otherwise = "because no stage reads this source as documents", "pretrain on it"
            yield from _without_effect(path, source, ["max_document_chars", "validation"], beside, otherwise)


def _sources_of_documents(recipe: Recipe) -> set[str]:
    names = set(recipe.pretrain.data) if recipe.pretrain is not None else set()
    names |= {recipe.tokenizer.source} if recipe.tokenizer is not None else set()
    suites = (suite for _, suites in _suites(recipe) for suite in suites.values())
    return names | {suite.source for suite in suites if isinstance(suite, BpbSuite) and suite.source is not None}


def _used_sources(recipe: Recipe) -> Iterator[str]:
    yield from _sources_of_documents(recipe)
    items = [item for _, suites in _suites(recipe) for item in suites.values()]
    for item in [*items, *(recipe.sft.data.values() if recipe.sft is not None else ())]:
        if isinstance(name := getattr(item, "source", None), str):
            yield name


def _in_model(model: Model) -> Iterator[FieldProblem]:
    if None not in (model.n_layer, model.n_embd, model.n_head):
        beside = "beside `n_layer`, `n_embd` and `n_head`"
        yield from _without_effect(("model",), model, ["depth"], beside, "remove one of those")


def _in_pretrain(pretrain: Pretrain, model: Model | None) -> Iterator[FieldProblem]:
    schedule = pretrain.schedule
    if schedule.kind == "constant":
        names = ["warmdown_frac", "final_frac"]
        yield from _without_effect(
            ("pretrain", "schedule"), schedule, names, "beside `kind: constant`", "use another kind"
        )
    if model is not None:
        yield from _in_optimizer(pretrain.optimizer, model)


def _in_optimizer(optimizer: Optimizer, model: Model) -> Iterator[FieldProblem]:
    variant = VARIANTS[model.architecture]
    names = [] if variant.has_residual_lambdas else ["resid_lr", "x0_lr"]
    names += [] if variant.has_value_embeddings else ["value_embedding_lr"]
    beside = f"beside `architecture: {model.architecture}`, which lacks these parameters"
    yield from _without_effect(("pretrain", "optimizer"), optimizer, names, beside, "use another architecture")


def _in_export(export: Export) -> Iterator[FieldProblem]:
    check = export.check
    if check is None:
        return
    path = ("export", "check")
    if export.formats.mlx is None and export.formats.hf is None:
        beside = "if `torch` is the only format, because it is not run"
        yield from _without_effect(("export",), export, ["check"], beside, "add a format")
    elif not check.prompts and not check.suites:
        yield from _without_effect(("export",), export, ["check"], "without `prompts` or `suites`", "add some")
    elif not check.prompts:
        yield from _without_effect(path, check, ["max_tokens"], "without `prompts`", "add some")


def _suites(recipe: Recipe) -> Iterator[tuple[KeyPath, Mapping[str, BaseModel]]]:
    """Yield the path of each map of suites with the suites, and the tasks that the model practises on."""
    evaluate = recipe.run.monitor.evaluate
    yield ("run", "monitor", "evaluate", "suites"), evaluate.suites
    yield ("run", "monitor", "evaluate", "chat_suites"), evaluate.chat_suites
    if recipe.base_eval is not None:
        yield ("base_eval", "suites"), recipe.base_eval.suites
    if recipe.rl is not None:
        yield ("rl", "data"), recipe.rl.data
        yield ("rl", "held_out"), recipe.rl.held_out
    if recipe.chat_eval is not None:
        yield ("chat_eval", "suites"), recipe.chat_eval.suites


def _in_suite(path: KeyPath, suite: BaseModel) -> Iterator[FieldProblem]:
    if isinstance(suite, QuestionsSuite) and suite.num_fewshot == 0:
        beside = "without `num_fewshot`, the number of solved examples"
        yield from _without_effect(path, suite, ["fewshot_split"], beside, "set that field")
    if not isinstance(suite, Generation):
        return
    task = getattr(suite, "task", None)
    if isinstance(task, str) and TASKS[task].kind == "categorical":
        beside = f"beside `task: {task}`, whose answers are not generated"
        names = ["num_samples", "max_tokens", "temperature", "top_k"]
        yield from _without_effect(path, suite, names, beside, "use a task that generates")
    elif suite.temperature == 0:
        beside = "beside `temperature: 0`, which always takes the likeliest token"
        names = ["top_k", *(["num_samples"] if suite.num_samples > 1 else [])]
        yield from _without_effect(path, suite, names, beside, "set `temperature`")
