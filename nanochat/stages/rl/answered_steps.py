"""Samples the answers of each step from the current model, and measures them.

A step's answers depend on the model, the seed, and the numbers of step, prompt and answer. A run that was killed while
it sampled therefore samples the same answers again, and a checkpoint holds nothing but the number of the step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from nanochat.data.loaders.batches import StateDict
from nanochat.inference.engine import Engine
from nanochat.model.dispatch import FastGPT
from nanochat.plan.specs.training import RlSpec
from nanochat.stages.process.context import StageContext, derive_seed
from nanochat.stages.rl.practice_questions import Questions
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.train.policy_gradient import Objective
from nanochat.train.policy_step import PolicyRows, policy_rows
from nanochat.train.rollouts import Answer, Rollouts


@dataclass(frozen=True, kw_only=True)
class SampledStep:
    """Measurements of a step's answers, over all processes."""

    reward: float
    grade: float
    answer_tokens: float
    """Mean length of an answer."""
    no_signal_frac: float
    """Share of the questions whose answers all had the same reward."""
    cut_frac: float
    """Share of the answers that reached the limit of their length."""
    ungraded_frac: float
    """Share of the answers that the task could not grade; they count as wrong."""
    tokens: int
    """Tokens of prompts and answers."""
    drawn_tokens: int
    seconds: float


class Sampler:
    """Generates with the current weights of the model that is being trained.

    On a GPU it keeps a copy of them in the compute dtype, because that generates faster than float32.
    """

    def __init__(self, context: StageContext, model: FastGPT, tokenizer: Tokenizer) -> None:
        self._model, self._dtype = model, mx.bfloat16 if context.runtime.dtype == "bfloat16" else mx.float32
        self._is_copied = context.runtime.backend != "cpu"
        self._copy = FastGPT(model.config) if self._is_copied else model
        self._copy.set_compute_dtype(self._dtype)
        self.engine = Engine(self._copy, tokenizer, weights_change=True)

    def refresh(self) -> Engine:
        """Return the engine with the current weights."""
        if self._is_copied:
            self._copy.set_parameters(self._model.named_parameters())
            self._copy.cast_matrices(self._dtype)
            mx.eval(self._copy.named_parameters())
        return self.engine


class AnsweredSteps:
    """The steps of the rl stage: a `StepSource`."""

    def __init__(
        self,
        context: StageContext,
        spec: RlSpec,
        *,
        sampler: Sampler,
        questions: Questions,
        rollouts: Rollouts,
        objective: Objective,
        max_rows: int,
    ) -> None:
        self.context, self.spec, self.sampler, self.questions = context, spec, sampler, questions
        self.rollouts, self.objective, self.max_rows = rollouts, objective, max_rows
        self.step = 0
        self._has_problem = False
        self.sampled: SampledStep | None = None
        """Measurements of the step last returned."""

    def next(self) -> PolicyRows:
        """Sample the answers of the next step and return their rows."""
        began, group = time.monotonic(), self.context.process_group
        numbers = range(group.rank, self.spec.prompts_per_step, group.size)
        first, place = self.step * self.spec.prompts_per_step, f"rl, step {self.step + 1}"
        prompts = [self.questions.prompt(first + number, place=f"{place}, prompt {number + 1}") for number in numbers]
        groups = self.rollouts.sample(
            self.sampler.refresh(),
            prompts,
            seed=derive_seed(self.spec.seed, "rl", "answers", self.step),
            numbers=numbers,
            max_rows=self.max_rows,
        )
        self.step += 1
        self._report_problems([answer for group in groups for answer in group])
        self.sampled = self._measure(groups, time.monotonic() - began)
        return PolicyRows(
            policy_rows(groups, self.objective, prompts=self.spec.prompts_per_step),
            valid_tokens=self.sampled.drawn_tokens,
            longest=self.sampler.engine.model.config.sequence_len,
            is_padded=self.context.runtime.backend != "cpu",
        )

    def _report_problems(self, answers: Sequence[Answer]) -> None:
        """Warn the user once if answers cannot be graded."""
        problem = next((answer.problem for answer in answers if answer.problem), None)
        if problem is not None and not self._has_problem:
            self.context.notify_user(f"step {self.step:,}: grading an answer failed, so it counts as wrong: {problem}")
            self._has_problem = True

    def _measure(self, groups: Sequence[Sequence[Answer]], seconds: float) -> SampledStep:
        answers = [answer for group in groups for answer in group]
        sums = [
            sum(answer.reward for answer in answers),
            sum(answer.grade for answer in answers),
            sum(len(answer.tokens) for answer in answers),
            sum(len({answer.reward for answer in group}) == 1 for group in groups),
            sum(answer.is_cut for answer in answers),
            sum(bool(answer.problem) for answer in answers),
            sum(len(answer.prompt) + len(answer.tokens) for answer in answers),
            sum(sum(answer.is_drawn) for answer in answers),
        ]
        if self.context.process_group.mlx_group is not None:
            shared = mx.array(sums, dtype=mx.float32)
            sums = np.array(mx.distributed.all_sum(shared, group=self.context.process_group.mlx_group)).tolist()
        reward, grade, length, without_signal, cut, ungraded, tokens, drawn = sums
        count = self.spec.answers_per_step
        return SampledStep(
            reward=reward / count,
            grade=grade / count,
            answer_tokens=length / count,
            no_signal_frac=without_signal / self.spec.prompts_per_step,
            cut_frac=cut / count,
            ungraded_frac=ungraded / count,
            tokens=int(tokens),
            drawn_tokens=max(1, int(drawn)),
            seconds=seconds,
        )

    def state_dict(self) -> StateDict:
        """Return the number of steps whose answers were sampled."""
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue after the number of steps in `state`."""
        step = state["step"]
        assert isinstance(step, int), "the state's `step` must be a number"
        self.step = step

    def close(self) -> None:
        """Do nothing: nothing is sampled ahead."""
