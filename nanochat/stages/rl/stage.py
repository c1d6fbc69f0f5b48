"""The rl stage: policy gradient on the model's own answers, as in nanochat's `chat_rl.py`.

Each step samples several answers to some questions, grades them, and makes answers likelier that are better than the
others to the same question. `train.policy_gradient` has the formulas.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import mlx.core as mx

from nanochat.checkpoint.model_folder import load_model, load_model_and_tokenizer
from nanochat.inference.batch_sizes import rollout_rows
from nanochat.inference.sampling import Sampling
from nanochat.model.dispatch import FastGPT
from nanochat.optim.groups import REFERENCE_TOKENS_PER_STEP, build_groups
from nanochat.optim.optimizer import Optimizer
from nanochat.optim.schedules import ScheduleConfig, muon_momentum, sft_lr_multiplier
from nanochat.plan.specs.job import Job
from nanochat.plan.specs.training import RlSpec
from nanochat.stages.process.context import StageContext, StageResult
from nanochat.stages.rl.answered_steps import AnsweredSteps, Sampler
from nanochat.stages.rl.held_out_questions import HeldOut
from nanochat.stages.rl.practice_questions import Questions, read_questions, warn_of_practised_questions
from nanochat.stages.training.micro_batch import choose_micro_batch
from nanochat.stages.training.step_source import Observed
from nanochat.stages.training.training import Training
from nanochat.stages.training.training_schedule import TrainingSchedule
from nanochat.storage.series import TRAIN_REWARD
from nanochat.train.callbacks import TrainingPosition
from nanochat.train.policy_gradient import Objective
from nanochat.train.policy_step import PolicyStep
from nanochat.train.rollouts import Reward, Rollouts
from nanochat.train.step import Rates


def run(job: Job, context: StageContext) -> StageResult:
    """Train on answers; write `out/model/`, `out/tables/answers.jsonl` and `out/samples.md`; return the metrics.

    Metrics: `loss` and `reward` (last step), `steps`, `skipped_steps`, `prompts`, `answers`, `epochs`, `tokens`
    (drawn); on held-out questions `SUITE` and `SUITE_before`, and their means `score` and `score_before`;
    `kl` (from the model at the start, per token).
    """
    spec = job.spec
    assert isinstance(spec, RlSpec), f"rl got the job of {spec.stage}"
    folder = context.model_to_start_from(spec.init_from)
    model, tokenizer = load_model_and_tokenizer(folder)
    questions = read_questions(spec, context, tokenizer, context_len=model.config.sequence_len)
    objective = Objective(centre=spec.centre, scale=spec.scale, clip=spec.clip, kl=spec.kl)
    world, start = context.process_group, _load_start(folder, context)
    common: dict[str, Any] = {
        "sampler": Sampler(context, model, tokenizer),
        "questions": questions,
        "rollouts": _make_rollouts(spec),
        "max_rows": _max_rows(spec, context),
    }
    steps = AnsweredSteps(context, spec, objective=objective, **common)
    training = Training(
        context,
        model=model,
        tokenizer=tokenizer,
        optimizer=_make_optimizer(spec, context, model),
        loader=steps,
        schedule=_make_schedule(spec, questions),
        micro_batch_size=_choose_micro_batch(spec, context, model),
        observe=lambda: _observe(steps, step),
    )
    step = PolicyStep(
        training.gradient_step, objective, updates=spec.updates_per_step, start=start, world=world.mlx_group
    )
    training.step = step
    held_out = HeldOut(context, spec, model=model, start=start, fraction=training.schedule.fraction, **common)

    def start_training() -> None:
        if world.is_writer:
            warn_of_practised_questions(spec, context, questions)
        held_out.evaluate(0)

    position = training.run(at_start=start_training, evaluate=lambda position: held_out.evaluate(position.step))
    if held_out.measured_step != position.step:
        held_out.evaluate(position.step)
    training.write_output()
    if not world.is_writer:
        return StageResult({})
    _warn_of_equal_rewards(context, spec)
    return StageResult(_metrics(context, spec, position, held_out, questions), training.timings())


def _max_rows(spec: RlSpec, context: StageContext) -> int:
    """Return how many answers are generated at a time."""
    on_cpu = context.runtime.backend == "cpu"
    return context.shrink_batch(rollout_rows(spec.answers_per_step, context.process_group.size, on_cpu=on_cpu))


def _load_start(folder: Path, context: StageContext) -> FastGPT:
    """Return the model at the start, which is not trained: KL is measured from it."""
    start = load_model(folder)
    start.set_compute_dtype(mx.bfloat16 if context.runtime.dtype == "bfloat16" else mx.float32)
    return start


def _choose_micro_batch(spec: RlSpec, context: StageContext, model: FastGPT) -> int:
    rows = max(1, spec.answers_per_step // context.process_group.size)
    return choose_micro_batch(context, model.config, sequence_len=model.config.sequence_len, rows=rows)


def _make_rollouts(spec: RlSpec) -> Rollouts:
    reward = spec.reward
    return Rollouts(
        samples=spec.samples_per_prompt,
        max_tokens=spec.max_tokens,
        sampling=Sampling(spec.temperature, spec.top_k),
        reward=Reward(
            length=reward.length,
            form=None if reward.form is None else re.compile(reward.form),
            form_reward=reward.form_reward,
        ),
    )


def _make_optimizer(spec: RlSpec, context: StageContext, model: FastGPT) -> Optimizer:
    """Return an optimizer without moments: those of fine-tuning belong to gradients of another loss."""
    # The tables' rates as they are: the number of tokens in a step depends on the answers.
    tokens_per_step = REFERENCE_TOKENS_PER_STEP[spec.optimizer.variant]
    groups = build_groups(model.config, spec.optimizer, tokens_per_step=tokens_per_step)
    return Optimizer(groups, model.named_parameters(), world=context.process_group.mlx_group)


def _make_schedule(spec: RlSpec, questions: Questions) -> TrainingSchedule:
    last_step = spec.steps
    if last_step is None:
        assert spec.epochs is not None, "exactly one of them is set"
        last_step = max(1, int(spec.epochs * len(questions)) // spec.prompts_per_step)
    constant = ScheduleConfig(steps=last_step, kind="constant")

    def rates(step: int) -> Rates:
        return Rates(
            lr_multiplier=sft_lr_multiplier(step / last_step, spec.constant_frac, spec.final_frac),
            momentum=muon_momentum(spec.optimizer.variant, step, constant),
            weight_decay=0.0,  # as in chat_rl
        )

    return TrainingSchedule(
        tokens_per_step=spec.answers_per_step * spec.max_tokens,
        last_step=last_step,
        rates=rates,
        fraction=lambda step: step / last_step,
    )


def _observe(steps: AnsweredSteps, step: PolicyStep) -> Observed:
    """Return the measurements of the latest step for the progress display and the series."""
    sampled = steps.sampled
    assert sampled is not None, "a step was sampled before it is observed"
    metrics = {
        TRAIN_REWARD: sampled.reward,
        "train/grade": sampled.grade,
        "train/answer_tokens": sampled.answer_tokens,
        "train/no_signal_frac": sampled.no_signal_frac,
        "train/cut_frac": sampled.cut_frac,
        "train/ungraded_frac": sampled.ungraded_frac,
    }
    return Observed(
        tokens=sampled.tokens,
        # Not finite after a step that diverged, which the loop skips. A few such steps in a row end the stage.
        metrics={**metrics, "train/kl": step.kl} if step.kl is not None and math.isfinite(step.kl) else metrics,
        timings={
            "train/sampling_seconds": sampled.seconds,
            "train/sampled_tokens_per_second": sampled.answer_tokens * steps.spec.answers_per_step / sampled.seconds,
        },
        text=f"reward {sampled.reward:.3f}",
    )


def _warn_of_equal_rewards(context: StageContext, spec: RlSpec) -> None:
    """Warn the user if no step changed the model: answers with an advantage of 0 have no gradient."""
    reason = None
    if spec.centre == "none" and not any(context.logged_values(TRAIN_REWARD)):
        reason = "all answers earned a reward of 0"
    if spec.centre == "group" and min(context.logged_values("train/no_signal_frac")) == 1:
        reason = "all answers to a question earned the same reward"
    if reason is not None:
        context.notify_user(
            f"the model learned nothing: in every logged step, {reason}; "
            "try easier questions, more `samples_per_prompt`, a higher `temperature`, or `reward.form`"
        )


def _metrics(
    context: StageContext, spec: RlSpec, position: TrainingPosition, held_out: HeldOut, questions: Questions
) -> dict[str, float]:
    prompts = position.step * spec.prompts_per_step
    return {  # in this order, because the line at the end of the stage shows only the first few
        **{f"{name}_before": value for name, value in held_out.scores(0).items()},
        **held_out.measured,
        "reward": context.logged_values(TRAIN_REWARD)[-1],
        **position.metrics(),
        "prompts": float(prompts),
        "answers": float(prompts * spec.samples_per_prompt),
        "epochs": prompts / len(questions),
    }
