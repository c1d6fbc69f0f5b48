"""Finds the idle values of a recipe, which have no effect beside its other fields, so that a plan can warn of them.

A value is idle if it belongs to something that the recipe does not do as it stands, such as `tracking.register` beside
`kind: none`. A sweep, a `--set` flag or a recipe that extends this one may switch that on or off, so an idle value is
no error. Not here: contradictions, which are two statements that cannot both be followed, such as `column` beside
`map`, or `scale: std` of a single answer. `Section.conflict`, `cross_references` and `plan.derive` refuse those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

from pydantic import BaseModel

from nanochat.model.architectures import VARIANTS
from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.merge.tree import KeyPath
from nanochat.recipe.schema.evaluation_sections import BpbSuite, Generation, QuestionProblems, QuestionsSuite
from nanochat.recipe.schema.export_section import Export
from nanochat.recipe.schema.recipe import Recipe
from nanochat.recipe.schema.rl_section import Rl
from nanochat.recipe.schema.training_sections import Model, Pretrain
from nanochat.tasks.table import TASKS

Section = TypeVar("Section", bound=BaseModel)

_IS_CONSTANT, _LOWER = "with `constant_frac: 1`: the learning rate never falls", "lower `constant_frac`"


class _Idle(NamedTuple):
    """Fields of a section that are idle."""

    path: KeyPath
    section: BaseModel
    fields: tuple[str, ...]
    beside: str
    """Why, as the end of the message: "beside `kind: none`"."""
    otherwise: str
    """The way to use the fields, as the end of the advice: "use `kind: mlflow`"."""


def without_idle_values(recipe: Recipe) -> Recipe:
    """Return the recipe with its idle values replaced by the defaults, so that they count in no fingerprint.

    A default may make another value idle, such as `form_reward` after `form`.
    """
    while problems := list(find_idle_values(recipe, has_no_samples=False)):
        for problem in problems:
            recipe = _with_default(recipe, problem.path)
    return recipe


def _with_default(section: Section, path: KeyPath) -> Section:
    """Return a section with the default in the field at `path`, which may lead through maps of sections."""
    name, *below = path
    assert isinstance(name, str), "the idle fields lie in no list"
    if not below:
        value = type(section).model_fields[name].get_default()
    elif isinstance(inner := getattr(section, name), dict):
        value = inner | {below[0]: _with_default(inner[below[0]], tuple(below[1:]))}
    else:
        value = _with_default(inner, tuple(below))
    return section.model_copy(update={name: value})


def find_idle_values(recipe: Recipe, *, has_no_samples: bool) -> Iterator[FieldProblem]:
    """Yield the idle values of a valid recipe, with the reason and what to do.

    A default is never idle: a resolved recipe, as a run keeps it, gives all fields. `has_no_samples`
    says that the recipe writes `sample_every_steps: null`, which leaves its prompts out on purpose.
    """
    for path, section, fields, beside, otherwise in _idle_fields(recipe, has_no_samples=has_no_samples):
        for name in fields:
            if getattr(section, name) != type(section).model_fields[name].get_default():
                where = ".".join(str(key) for key in (*path, name))
                message = f"`{where}` has no effect {beside}"
                yield FieldProblem((*path, name), "no-effect", message, f"remove it, or {otherwise}", at_key=True)


def _idle_fields(recipe: Recipe, *, has_no_samples: bool) -> Iterator[_Idle]:
    run, monitor, tracking = recipe.run, recipe.run.monitor, recipe.tracking
    if monitor.sample_every_steps is None and not has_no_samples:
        yield _Idle(("run", "monitor"), monitor, ("prompts",), "without `sample_every_steps`", "set that field")
    if not monitor.prompts:
        yield _Idle(("run", "monitor"), monitor, ("sample_every_steps",), "without `prompts`", "add some")
    if run.distributed.processes == 1:
        fields = ("backend", "hostfile")
        yield _Idle(("run", "distributed"), run.distributed, fields, "with one process", "raise `processes`")
    if tracking.kind == "none":
        yield _Idle(("tracking",), tracking, ("register",), "beside `kind: none`", "use `kind: mlflow`")
    if recipe.base_eval is not None and not recipe.base_eval.samples:
        yield _Idle(("base_eval",), recipe.base_eval, ("sample_tokens",), "without `samples`", "add some")
    yield from _in_sources(recipe)
    yield from _in_monitored(recipe)
    yield from _in_model(recipe.model, recipe.pretrain)
    if recipe.sft is not None and recipe.sft.schedule.constant_frac == 1:
        yield _Idle(("sft", "schedule"), recipe.sft.schedule, ("final_frac",), _IS_CONSTANT, _LOWER)
    if recipe.rl is not None:
        yield from _in_rl(recipe.rl)
    if recipe.export is not None:
        yield from _in_export(recipe.export)
    for path, suites in _suites(recipe):
        for name, suite in suites.items():
            yield from _in_suite((*path, name), suite)


def _in_monitored(recipe: Recipe) -> Iterator[_Idle]:
    path, evaluate = ("run", "monitor", "evaluate"), recipe.run.monitor.evaluate
    if not evaluate.suites and not evaluate.chat_suites:
        yield _Idle(path, evaluate, ("every_steps",), "without `suites` or `chat_suites`", "add some")
    if recipe.sft is None:
        yield _Idle(path, evaluate, ("chat_suites",), "without `sft`, during which they run", "add that stage")
    if recipe.sft is None and recipe.pretrain is None:
        beside = "without `pretrain` and `sft`, during which they run"
        yield _Idle(path, evaluate, ("suites",), beside, "use `base_eval.suites`")


def _in_rl(rl: Rl) -> Iterator[_Idle]:
    if rl.updates_per_step == 1:
        beside = "with one update per step: the model that is updated is the one that answered"
        yield _Idle(("rl",), rl, ("clip",), beside, "raise `updates_per_step`")
    if rl.schedule.constant_frac == 1:
        yield _Idle(("rl", "schedule"), rl.schedule, ("final_frac",), _IS_CONSTANT, _LOWER)
    path = ("rl", "reward")
    if rl.reward.form is None:
        yield _Idle(path, rl.reward, ("form_reward",), "without `form`", "set that field")
    elif rl.reward.form_reward == 0:
        yield _Idle(path, rl.reward, ("form",), "with `form_reward: 0`", "raise it")


def _in_sources(recipe: Recipe) -> Iterator[_Idle]:
    suites = [suite for _, suites in _suites(recipe) for suite in suites.values()]
    documents = set(recipe.pretrain.data) if recipe.pretrain is not None else set()
    documents |= {recipe.tokenizer.source} if recipe.tokenizer is not None else set()
    documents |= {suite.source for suite in suites if isinstance(suite, BpbSuite) and suite.source is not None}
    rows = {getattr(item, "source", None) for item in (*suites, *(recipe.sft.data.values() if recipe.sft else ()))}
    for name, source in recipe.sources.items():
        path = ("sources", name)
        if source.builtin is not None:
            fields = ("column", "max_bad_rows", *(("max_files",) if source.builtin == "spelling" else ()))
            yield _Idle(path, source, fields, f"beside `builtin: {source.builtin}`", "name a `path` or a `uri`")
        if name in rows - documents:
            beside = "because no stage reads this source as documents"
            yield _Idle(path, source, ("max_document_chars", "validation"), beside, "pretrain on it")


def _in_model(model: Model | None, pretrain: Pretrain | None) -> Iterator[_Idle]:
    if model is not None and None not in (model.n_layer, model.n_embd, model.n_head):
        yield _Idle(("model",), model, ("depth",), "beside `n_layer`, `n_embd` and `n_head`", "remove one of those")
    if pretrain is not None and pretrain.schedule.kind == "constant":
        path, fields = ("pretrain", "schedule"), ("warmdown_frac", "final_frac")
        yield _Idle(path, pretrain.schedule, fields, "beside `kind: constant`", "use another kind")
    if model is not None and pretrain is not None:
        variant = VARIANTS[model.architecture]
        lacking = [] if variant.has_residual_lambdas else ["resid_lr", "x0_lr"]
        lacking += [] if variant.has_value_embeddings else ["value_embedding_lr"]
        beside = f"beside `architecture: {model.architecture}`, which lacks these parameters"
        yield _Idle(("pretrain", "optimizer"), pretrain.optimizer, tuple(lacking), beside, "use another architecture")


def _in_export(export: Export) -> Iterator[_Idle]:
    check = export.check
    if check is None:
        return
    if export.formats.mlx is None and export.formats.hf is None:
        beside = "if `torch` is the only format, because it is not run"
        yield _Idle(("export",), export, ("check",), beside, "add a format")
    elif not check.prompts and not check.suites:
        yield _Idle(("export",), export, ("check",), "without `prompts` or `suites`", "add some")
    elif not check.prompts:
        yield _Idle(("export", "check"), check, ("max_tokens",), "without `prompts`", "add some")


def _in_suite(path: KeyPath, suite: BaseModel) -> Iterator[_Idle]:
    if isinstance(suite, QuestionsSuite) and suite.num_fewshot == 0:
        beside = "without `num_fewshot`, the number of solved examples"
        yield _Idle(path, suite, ("fewshot_split",), beside, "set that field")
    if isinstance(suite, QuestionProblems) and suite.grade != "program":
        yield _Idle(path, suite, ("program",), f"beside `grade: {suite.grade}`", "write `grade: program`")
    if not isinstance(suite, Generation):
        return
    task = getattr(suite, "task", None)
    if isinstance(task, str) and TASKS[task].kind == "categorical":
        beside = f"beside `task: {task}`, whose answers are not generated"
        fields = ("num_samples", "max_tokens", "temperature", "top_k")
        yield _Idle(path, suite, fields, beside, "use a task that generates")
    elif suite.temperature == 0:
        beside = "beside `temperature: 0`, which always takes the likeliest token"
        yield _Idle(path, suite, ("top_k", "num_samples"), beside, "set `temperature`")


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
