"""The specification of the rl stage, which takes its optimizer from pretraining by default."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import assert_never

from nanochat.optim.groups import OptimizerConfig
from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.derive.evals import derive_chat_suites
from nanochat.plan.specs.training import RewardSpec, RlItem, RlSpec
from nanochat.recipe.schema import recipe as schema
from nanochat.recipe.schema.rl_section import AnyRlData, RlData, RlPython, RlQuestions


def derive_rl(section: schema.Rl, given: Derivation) -> RlSpec:
    """Return the specification of the rl stage, the same with and without idle values of the section."""
    _check(section, given)
    optimizer = given.pretrain.optimizer if given.pretrain else OptimizerConfig()
    reward, schedule = section.reward, section.schedule
    has_form = reward.form is not None and reward.form_reward > 0
    same = ("prompts_per_step", "samples_per_prompt", "max_tokens", "temperature", "top_k", "kl", "init_from")
    return RlSpec(
        data=_derive_data(section, given),
        held_out=derive_chat_suites(section.held_out, ("rl", "held_out"), given),
        steps=section.horizon.steps,
        epochs=section.horizon.epochs,
        centre=section.advantage.centre,
        scale=section.advantage.scale,
        reward=RewardSpec(
            length=reward.length,
            form=reward.form if has_form else None,
            form_reward=reward.form_reward if has_form else 0.0,
        ),
        clip=section.clip if section.updates_per_step > 1 else None,
        updates_per_step=section.updates_per_step,
        optimizer=replace(optimizer, lr_scale=optimizer.lr_scale * section.lr_scale),
        constant_frac=schedule.constant_frac,
        final_frac=schedule.final_frac if schedule.constant_frac < 1 else 0.0,
        seed=given.recipe.seed,
        **{name: getattr(section, name) for name in same},
    )


def _derive_data(section: schema.Rl, given: Derivation) -> dict[str, RlItem]:
    suites = {name: _as_suite(item) for name, item in section.data.items()}
    derived = derive_chat_suites(suites, ("rl", "data"), given)
    return {name: RlItem(suite=suite, weight=section.data[name].weight) for name, suite in derived.items()}


def _as_suite(item: AnyRlData) -> schema.AnyChatSuite:
    """Return a task to practise on as a suite of chat_eval, which is derived and built in the same way."""
    match item:
        case RlData():
            return schema.ChatSuite(**item.model_dump(exclude={"weight"}))
        case RlQuestions():
            return schema.ChatQuestionsSuite(**item.model_dump(exclude={"weight"}))
        case RlPython():
            return schema.PythonSuite(task=item.task, max_problems=item.max_problems)
        case _:
            assert_never(item)


def _check(section: schema.Rl, given: Derivation) -> None:
    """Refuse settings that contradict each other, and an expression that is none."""
    if section.advantage.centre == "group" and section.samples_per_prompt == 1:
        message = "with one answer per question, every answer has the mean reward of its group, and nothing is learned"
        advice = "raise `samples_per_prompt`, or use `advantage: {centre: none}`"
        given.issues.refuse(("rl", "samples_per_prompt"), "conflict", message, advice=advice)
    if section.advantage.scale == "std" and section.samples_per_prompt == 1:
        message = "one answer per question has no standard deviation to divide by"
        given.issues.refuse(("rl", "advantage", "scale"), "conflict", message, advice="raise `samples_per_prompt`")
    try:
        re.compile(section.reward.form or "")
    except re.error as error:
        message = f"`form` is not a regular expression: {error}"
        given.issues.refuse(("rl", "reward", "form"), "bad-format", message)
    start = given.start_model("rl")
    if start is not None and section.max_tokens >= (context := start.sequence_len):
        message = f"answers of {section.max_tokens:,} tokens leave no room for questions in a context of {context:,}"
        given.issues.refuse(("rl", "max_tokens"), "sequence-too-long", message, advice=f"at most {context // 2}")
