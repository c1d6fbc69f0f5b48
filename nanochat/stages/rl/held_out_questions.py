"""Evaluates the model of `rl` on questions that are not trained on, and measures its KL divergence from the start.

`out/tables/answers.jsonl` has the answers to the first questions of each suite at each evaluation, and
`out/samples.md` shows those before training beside the latest ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nanochat.errors import StageError
from nanochat.evals.task_result import ExampleRecord
from nanochat.model.dispatch import FastGPT
from nanochat.plan.specs.training import RlSpec
from nanochat.stages.process.context import StageContext, derive_seed, indented
from nanochat.stages.rl.answered_steps import Sampler
from nanochat.stages.rl.practice_questions import Questions
from nanochat.stages.suites.chat_suites import prepare_chat_suite
from nanochat.stages.suites.suite_runner import Suite
from nanochat.storage.files import write_text
from nanochat.storage.layout import ANSWERS_TABLE
from nanochat.train.policy_gradient import Objective, kl_estimate
from nanochat.train.policy_step import PolicyRows, logprobs_of, policy_rows
from nanochat.train.rollouts import Rollouts

_KL_ANSWERS = 64
"""Answers to practice questions on which the KL divergence from the start is estimated."""
_KEPT_QUESTIONS = 32
"""Questions of each suite whose answers are kept."""
_SHOWN_QUESTIONS = 6
"""Questions of each suite whose answers the report shows."""


class HeldOut:
    """Evaluates the model that is being trained. All processes evaluate alike, and rank 0 writes."""

    def __init__(
        self,
        context: StageContext,
        spec: RlSpec,
        *,
        sampler: Sampler,
        model: FastGPT,
        start: FastGPT,
        questions: Questions,
        rollouts: Rollouts,
        max_rows: int,
        fraction: Callable[[int], float],
    ) -> None:
        """`fraction` maps the number of steps done to the fraction of training done, for progress."""
        self.fraction = fraction
        self.context, self.spec, self.sampler, self.model, self.start = context, spec, sampler, model, start
        self.questions, self.rollouts, self.max_rows = questions, rollouts, max_rows
        self._suites: dict[str, Suite] = {
            name: prepare_chat_suite(context, sampler.engine, name, suite, seed=spec.seed)
            for name, suite in spec.held_out.items()
        }
        self.measured: dict[str, float] = {}
        """The latest results: each suite's metrics, their mean `score`, and `kl`."""
        self.measured_step = -1

    def evaluate(self, step: int) -> float:
        """Measure the model after a step, log the results, and return the mean score with a minus sign."""
        self.sampler.refresh()
        self.measured, lines = {}, []
        for name, suite in self._suites.items():
            result = suite.compute(self._progress(name, suite, step))
            self.measured |= result.metrics
            kept = [record for record in result.records if record.index < _KEPT_QUESTIONS]
            lines += [{"step": step, "suite": name, **_fields(record)} for record in kept]
        if self._suites:
            self.measured["score"] = sum(self.measured[name] for name in self._suites) / len(self._suites)
        self.measured["kl"] = self._divergence(step)
        self.measured_step = step
        shown = {key: value for key, value in self.measured.items() if not key.endswith((".n", ".centred"))}
        self.context.log_metrics(step, {f"held_out/{key}": value for key, value in shown.items()})
        if self.context.process_group.is_writer:
            self._write_answers(step, lines)
        return -self.measured.get("score", 0.0)

    def scores(self, evaluation: int) -> dict[str, float]:
        """Return the suites' scores at evaluation number `evaluation`, and their mean `score`. For rank 0 only."""
        names = [*self._suites, "score"] if self._suites else []
        return {name: self.context.logged_values(f"held_out/{name}")[evaluation] for name in names}

    def _progress(self, name: str, suite: Suite, step: int) -> Callable[[int], None]:
        def tick(amount: int) -> None:
            self.context.report_progress(self.fraction(step), f"{name}: {amount:,}/{suite.total:,} {suite.unit}")

        return tick

    def _divergence(self, step: int) -> float:
        """Return the KL divergence from the model at the start, per drawn token of answers to practice questions.

        Raises a StageError if it is not finite.
        """
        if step == 0:
            return 0.0
        numbers = range(max(1, _KL_ANSWERS // self.spec.samples_per_prompt))
        prompts = [self.questions.prompt(n, place="rl, measuring the KL divergence") for n in numbers]
        groups = self.rollouts.sample(
            self.sampler.engine,
            prompts,
            seed=derive_seed(self.spec.seed, "rl", "kl", step),
            numbers=numbers,
            max_rows=self.max_rows,
        )
        rows = policy_rows(groups, Objective(kl=1.0), prompts=len(prompts))
        longest = self.model.config.sequence_len
        total, count = 0.0, 0
        for part in PolicyRows(rows, 1, longest, is_padded=False).lay_out(max(1, 4096 // longest)):
            now, start = (logprobs_of(model, part.inputs, part.targets) for model in (self.model, self.start))
            total += float((kl_estimate(now, start) * part.is_drawn).sum())
            count += int(part.is_drawn.sum())
        if not math.isfinite(total):
            raise StageError(
                f"the model has diverged: its KL divergence from the first model is {total} after step {step:,}\n"
                "  lower the learning rate (`rl.lr_scale`)"
            )
        return total / max(1, count)

    def _write_answers(self, step: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """Add answers to the table, without those of later steps that were written before a restart."""
        path = self.context.folder.table(ANSWERS_TABLE)
        path.parent.mkdir(parents=True, exist_ok=True)
        old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in map(json.loads, old) if line["step"] < step]
        table = [*kept, *lines]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in table))
        write_text(self.context.folder.samples, _compare(table, step))


def _fields(record: ExampleRecord) -> dict[str, Any]:
    wanted = ("index", "sample", "prompt", "output", "expected", "correct")
    return {key: value for key, value in asdict(record).items() if key in wanted}


def _compare(table: Sequence[Mapping[str, Any]], step: int) -> str:
    """Return the first answers to each question before training and after `step`, as Markdown."""
    parts = [f"# Answers before training and after step {step:,}"]
    answers = {(line["step"], line["suite"], line["index"]): line for line in reversed(table)}  # the first sample wins
    shown = [key for key in answers if key[0] == 0 and key[2] < _SHOWN_QUESTIONS]
    for _, suite, index in sorted(shown, key=lambda key: key[1:]):
        before, after = answers[0, suite, index], answers.get((step, suite, index))
        assert after is not None, "each evaluation answers the same questions"
        parts += [f"## {suite}, question {index + 1}", indented(before["prompt"])]
        parts += [f"Before, {_verdict(before)}:", indented(before["output"])]
        parts += [f"After, {_verdict(after)}:", indented(after["output"])]
    return "\n\n".join(parts) + "\n"


def _verdict(line: Mapping[str, Any]) -> str:
    return "right" if line["correct"] else "wrong"
