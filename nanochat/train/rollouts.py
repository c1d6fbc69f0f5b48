"""Samples answers to prompts and rewards them.

Each answer is drawn with a key of its own, so the same seed gives the same answers in any batch.
Not here: which prompts a step has, and how rewards become gradients (`policy_gradient`, `policy_step`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.errors import StageError
from nanochat.inference.engine import Engine
from nanochat.inference.generation import Completion, Request
from nanochat.inference.sampling import Sampling
from nanochat.tasks.task import Example, Grade, Task, grade_completions


@dataclass(frozen=True)
class Prompt:
    """A question to answer, and the task that grades the answers."""

    task: Task
    example: Example
    ids: Sequence[int]
    place: str
    """The name of the question, for an error message."""


@dataclass(frozen=True, kw_only=True)
class Reward:
    """The reward of an answer: the task's grade, 1 if it is right, and optional terms for its length and form."""

    length: float = 0.0
    """Subtracted from the reward of an answer of `max_tokens` tokens; from a shorter one in proportion."""
    form: re.Pattern[str] | None = None
    form_reward: float = 0.0
    """Added if the answer contains a match of `form`."""

    def of(self, grade: float, text: str, *, tokens_frac: float) -> float:
        """Return the reward of an answer, which used the share `tokens_frac` of the tokens that it may have."""
        has_form = self.form is not None and self.form.search(text) is not None
        return grade - self.length * tokens_frac + (self.form_reward if has_form else 0.0)


@dataclass(frozen=True)
class Answer:
    """A sampled answer and its reward."""

    prompt: Sequence[int]
    tokens: Sequence[int]
    """Includes the token that ended the answer."""
    is_drawn: Sequence[bool]
    """Whether the model drew each token. The calculator's output is known, so it is not trained on."""
    text: str
    grade: float
    reward: float
    is_cut: bool
    """Whether it reached the limit of its length."""
    problem: str = ""
    """Why the task could not grade it. The grade is then 0."""


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """How a step's answers are sampled and rewarded."""

    samples: int
    """Answers to each prompt."""
    max_tokens: int
    sampling: Sampling
    reward: Reward

    def sample(
        self, engine: Engine, prompts: Sequence[Prompt], *, seed: int, numbers: Sequence[int], max_rows: int
    ) -> list[list[Answer]]:
        """Return the answers to each prompt. `numbers` are the prompts' numbers in the whole step, of all processes.

        Raises:
            StageError: a grade is not a number from 0 to 1.
        """
        requests = [
            Request(
                prompt=prompt.ids,
                max_tokens=self.max_tokens,
                sampling=self.sampling,
                seed=seed,
                number=number * self.samples + sample,
            )
            for number, prompt in zip(numbers, prompts, strict=True)
            for sample in range(self.samples)
        ]
        completions = engine.finish(requests, max_rows=max_rows)
        starts = range(0, len(completions), self.samples)
        return [
            self._grade(engine, prompt, completions[start : start + self.samples])
            for prompt, start in zip(prompts, starts, strict=True)
        ]

    def _grade(self, engine: Engine, prompt: Prompt, completions: Sequence[Completion]) -> list[Answer]:
        texts = [engine.tokenizer.decode(completion.tokens) for completion in completions]
        try:
            grades = grade_completions(prompt.task, [(prompt.example, text) for text in texts])
        except StageError as error:
            raise StageError(f"{prompt.place}: {error}") from error
        return [self._answer(prompt, *parts) for parts in zip(completions, texts, grades, strict=True)]

    def _answer(self, prompt: Prompt, completion: Completion, text: str, grade: Grade) -> Answer:
        ended = [] if completion.end_token is None else [completion.end_token]
        return Answer(
            prompt=prompt.ids,
            tokens=[*completion.tokens, *ended],
            is_drawn=[*completion.is_drawn, *[True] * len(ended)],
            text=text,
            grade=grade.score,
            reward=self.reward.of(grade.score, text, tokens_frac=len(completion.tokens) / completion.limit),
            is_cut=completion.ended == "length",
            problem=grade.problem,
        )
