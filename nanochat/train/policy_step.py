"""Updates a model with the answers that it sampled: rows for the passes of a training step, and the weights of tokens.

As in nanochat's `chat_rl.py`, each prompt counts equally: the loss is the mean over prompts of the mean over the tokens
that the model drew in all answers to a prompt. Not here: sampling (`rollouts`), the formulas (`policy_gradient`).

Shapes: B rows of a pass, T positions of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from nanochat.data.loaders.batches import Pass
from nanochat.data.packing.document_packer import IntArray
from nanochat.inference.batch_sizes import decoding_rows
from nanochat.model.dispatch import token_logprobs
from nanochat.model.gpt import GPT
from nanochat.model.low_memory.loss import IGNORED
from nanochat.train.policy_gradient import Doubles, Objective, advantages, kl_estimate, surrogate
from nanochat.train.rollouts import Answer
from nanochat.train.step import Rates, Rows, StepResult, TrainStep

GPU_ROW_TOKENS = 128
"""Rows are padded to a multiple of this on a GPU, because every new shape takes time to prepare."""
_SHORTEST_FRAC = 0.75
"""On a CPU, no row of a pass is shorter than this share of the longest one, to save padding."""


class PolicyRow(NamedTuple):
    """An answer after its prompt, as a row."""

    inputs: IntArray
    """(T,)"""
    targets: IntArray
    """(T,); -1 for the prompt and for what the model did not draw."""
    advantage: float
    share: float
    """The factor on each token's loss in the loss of the step."""


class PolicyPass(NamedTuple):
    """Some rows, padded to one length."""

    inputs: IntArray
    """(B, T)"""
    targets: IntArray
    """(B, T)"""
    advantages: Doubles
    """(B, 1)"""
    shares: Doubles
    """(B, 1)"""

    @property
    def is_drawn(self) -> Doubles:
        """1 where the model drew the target, else 0."""
        return np.where(self.targets == IGNORED, 0.0, 1.0)

    def weighted(self, weights: Doubles) -> Pass:
        """Return the pass in which each token has its weight times its row's share."""
        return Pass(self.inputs, self.targets, (weights * self.shares * self.is_drawn).astype(np.float32))


@dataclass(frozen=True)
class PolicyRows:
    """This process's rows of a step."""

    rows: Sequence[PolicyRow]
    """At least one."""
    valid_tokens: int
    """Drawn tokens in the answers of the whole step, of all processes."""
    longest: int
    """The length for which `micro_batch_size` was chosen, in tokens. Shorter rows fit more to a pass."""
    is_padded: bool
    """Whether rows are padded more than necessary, so that passes have few different shapes."""

    def lay_out(self, micro_batch_size: int) -> list[PolicyPass]:
        """Return the passes, longest rows first, with at most as many tokens as that many rows of `longest`."""
        waiting = sorted(self.rows, key=lambda row: len(row.inputs), reverse=True)
        passes = []
        while waiting:
            length = len(waiting[0].inputs)
            if self.is_padded:
                length = min(-(-length // GPU_ROW_TOKENS) * GPU_ROW_TOKENS, max(length, self.longest))
            max_rows = max(1, min(micro_batch_size * self.longest // length, decoding_rows(len(waiting))))
            shortest = 0 if self.is_padded else _SHORTEST_FRAC * length
            taken = [row for row in waiting[:max_rows] if len(row.inputs) >= shortest]
            waiting = waiting[len(taken) :]
            passes.append(_pad(taken, rows_in_all=max_rows if self.is_padded else len(taken), length=length))
        return passes

    def passes(self, micro_batch_size: int) -> list[Pass]:
        """Return the passes of an update by the model that drew the answers: a token's weight is its advantage."""
        return [part.weighted(part.advantages) for part in self.lay_out(micro_batch_size)]


def _pad(rows: Sequence[PolicyRow], *, rows_in_all: int, length: int) -> PolicyPass:
    inputs = np.zeros((rows_in_all, length), dtype=np.int32)
    targets = np.full((rows_in_all, length), IGNORED, dtype=np.int32)
    row_advantages, shares = np.zeros((rows_in_all, 1)), np.zeros((rows_in_all, 1))
    for number, row in enumerate(rows):
        inputs[number, : len(row.inputs)] = row.inputs
        targets[number, : len(row.targets)] = row.targets
        row_advantages[number], shares[number] = row.advantage, row.share
    return PolicyPass(inputs, targets, row_advantages, shares)


def policy_rows(groups: Sequence[Sequence[Answer]], objective: Objective, *, prompts: int) -> list[PolicyRow]:
    """Return a row for each answer. `groups` are the answers to each prompt, and a step has `prompts` prompts in all.

    Answers that cannot change the model have no row, but one row is always returned.
    """
    rewards = np.array([[answer.reward for answer in group] for group in groups], dtype=np.float64)
    rows = []
    for group, group_advantages in zip(groups, advantages(rewards, objective), strict=True):
        share = 1 / (prompts * max(1, sum(sum(answer.is_drawn) for answer in group)))
        rows += [
            _row(answer, float(advantage), share) for answer, advantage in zip(group, group_advantages, strict=True)
        ]
    useful = [row for row in rows if row.advantage != 0 or objective.kl > 0]
    return useful or rows[:1]


def _row(answer: Answer, advantage: float, share: float) -> PolicyRow:
    ids = np.array([*answer.prompt, *answer.tokens], dtype=np.int32)
    is_drawn = np.array([*[False] * len(answer.prompt), *answer.is_drawn])
    return PolicyRow(ids[:-1], np.where(is_drawn, ids, IGNORED)[1:].astype(np.int32), advantage, share)


@dataclass(frozen=True)
class _WeightedRows:
    """Rows whose passes are already weighted."""

    weighted: Sequence[Pass]
    valid_tokens: int

    def passes(self, micro_batch_size: int) -> Sequence[Pass]:
        return self.weighted


class PolicyStep:
    """Runs one or more optimizer steps on the answers of a step.

    Args:
        step: computes the gradients and updates the model.
        objective: what the updates maximise.
        updates: optimizer steps with the same answers.
        start: the model that training started from; needed for a KL penalty.
        world: the processes that share each step; None if this process trains alone.
    """

    def __init__(
        self,
        step: TrainStep,
        objective: Objective,
        *,
        updates: int = 1,
        start: GPT | None = None,
        world: mx.distributed.Group | None = None,
    ) -> None:
        assert objective.kl == 0 or start is not None, "a KL penalty needs the model at the start"
        self.step, self.objective, self.updates, self._start, self._world = step, objective, updates, start, world
        self.kl: float | None = None
        """The estimated KL divergence from the start per token, before the last update; None without a penalty."""

    def run(self, batch: Rows, *, rates: Rates, votes: Callable[[], Sequence[float]] = tuple) -> StepResult:
        """Update the model with rows, and return the measurements of the last update; see `TrainStep.run`."""
        assert isinstance(batch, PolicyRows), "reinforcement learning trains on sampled answers"
        if self.updates == 1 and not self.objective.needs_logprobs:
            return self.step.run(batch, rates=rates, votes=votes)
        passes = batch.lay_out(self.step.micro_batch_size)
        start = None if self.objective.kl == 0 else self._logprobs(self._start, passes)
        before: list[Doubles] | None = None
        for update in range(self.updates):
            current = self._logprobs(self.step.model, passes)
            before = before or current
            weighted, loss = self._weigh(passes, current, before, start or current, batch.valid_tokens)
            votes_now = votes if update == self.updates - 1 else tuple
            result = self.step.run(_WeightedRows(weighted, batch.valid_tokens), rates=rates, votes=votes_now)
        return replace(result, loss=mx.array(loss, dtype=mx.float32))

    def _weigh(
        self,
        passes: Sequence[PolicyPass],
        current: Sequence[Doubles],
        before: Sequence[Doubles],
        start: Sequence[Doubles],
        valid_tokens: int,
    ) -> tuple[list[Pass], float]:
        """Return the weighted passes and the loss of the whole step, and note the KL divergence."""
        weighted, loss, divergence = [], 0.0, 0.0
        for part, of_now, of_before, of_start in zip(passes, current, before, start, strict=True):
            losses, weights = surrogate(of_now, of_before, of_start, part.advantages, self.objective)
            weighted.append(part.weighted(weights))
            loss += float((losses * part.shares * part.is_drawn).sum())
            divergence += float((kl_estimate(of_now, of_start) * part.is_drawn).sum())
        loss, divergence = self._sum_over_world(loss, divergence)
        self.kl = divergence / valid_tokens if self.objective.kl else None
        return weighted, loss

    def _sum_over_world(self, *values: float) -> list[float]:
        if self._world is None:
            return list(values)
        summed = mx.distributed.all_sum(mx.array(values, dtype=mx.float32), group=self._world)
        return [float(value) for value in np.array(summed)]

    @staticmethod
    def _logprobs(model: GPT | None, passes: Sequence[PolicyPass]) -> list[Doubles]:
        assert model is not None, "checked at the beginning"
        return [logprobs_of(model, part.inputs, part.targets) for part in passes]


def logprobs_of(model: GPT, inputs: IntArray, targets: IntArray) -> Doubles:
    """Return each target's log-probability (B, T), 0 where it is -1."""
    return np.array(token_logprobs(model, mx.array(inputs), mx.array(targets)), dtype=np.float64)
