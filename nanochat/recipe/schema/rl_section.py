"""The section of the stage that trains on the model's own answers: `rl`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from nanochat.recipe.schema.evaluation_sections import (
    AnyChatSuite,
    ChatProblems,
    PythonProblems,
    QuestionProblems,
    kind_of_suite,
)
from nanochat.recipe.schema.field_types import Count, Fraction, InitFrom, Name, NonNegative, Positive, SplitName
from nanochat.recipe.schema.section import Section, StageSection


class Weighted(Section):
    """The share of a task."""

    weight: Positive | None = None
    """Share of the questions that comes from this task, relative to the weights of the other tasks. Give either all
    tasks a weight or none."""


class RlData(ChatProblems, Weighted):
    """A task whose questions the model practises on. Its grade is the reward."""

    split: SplitName = "train"
    """Split of the source, or some of its rows, such as `train[:500]`."""


class RlQuestions(QuestionProblems, Weighted):
    """Questions of your own to practise on. The grade is the reward."""

    split: SplitName = "train"
    """Split of the source, or some of its rows, such as `train[:500]`."""


class RlPython(PythonProblems, Weighted):
    """A task to practise on that a class of yours asks and grades. What `evaluate` returns is the reward."""


AnyRlData = Annotated[
    Annotated[RlData, Tag("chat")] | Annotated[RlQuestions, Tag("questions")] | Annotated[RlPython, Tag("python")],
    Discriminator(kind_of_suite),
]


class RlHorizon(Section):
    """How long to train. Give exactly one of the fields."""

    exactly_one = ("steps", "epochs")

    steps: Count | None = None
    """Number of steps. Each step samples answers to `prompts_per_step` questions."""
    epochs: Positive | None = None
    """Number of passes over the questions."""


class Advantage(Section):
    """How rewards become advantages: an answer with a positive advantage becomes likelier."""

    centre: Literal["group", "none"] = "group"
    """`group` subtracts the mean reward of all answers to the question. `none` subtracts nothing: with rewards of 0 and
    1, only right answers are trained on."""
    scale: Literal["none", "std"] = "none"
    """`std` divides by the standard deviation of the rewards of all answers to the question, as GRPO does."""


class RlReward(Section):
    """Terms that are added to the grade, which is 1 for a right answer and 0 for a wrong one."""

    length: NonNegative = 0.0
    """Subtracted from the reward of an answer that has `max_tokens` tokens. Shorter answers lose less, in
    proportion."""
    form: Annotated[str, Field(min_length=1, examples=["#### -?[0-9]"])] | None = None
    """Regular expression that a well-formed answer contains somewhere."""
    form_reward: NonNegative = 0.1
    """Added to the reward of an answer that `form` matches."""


class RlSchedule(Section):
    """The learning rate over steps: a constant part, then a linear warm-down."""

    constant_frac: Fraction = 0.0
    """Share of the steps with the full learning rate."""
    final_frac: Fraction = 0.0
    """Last learning rate, as a share of the peak."""


class Rl(StageSection):
    """The rl stage lets the model answer questions and makes answers likelier that earn a higher reward than other
    answers to the same question (policy gradient). Only tokens that the model drew are trained on."""

    upstream: ClassVar = ("sft",)
    metrics: ClassVar = ("kl", "loss", "reward", "score", "score_before")
    counts: ClassVar = ("answers", "epochs", "prompts", "skipped_steps", "steps", "tokens")

    data: Annotated[dict[Name, AnyRlData], Field(min_length=1)]
    """The questions: for each task, a name of your own and the fields of the task."""
    held_out: dict[Name, AnyChatSuite] = Field(default={})
    """Questions that are not trained on. They are answered before the first step, every
    `run.monitor.validate_every_steps`, and after the last step."""
    horizon: RlHorizon = RlHorizon(epochs=1.0)
    """How long to train. Default: one epoch."""
    prompts_per_step: Annotated[int, Field(ge=1, le=65_536)] = 16
    """Number of questions per step, summed over all processes."""
    samples_per_prompt: Annotated[int, Field(ge=1, le=4096)] = 16
    """Number of answers that are sampled for each question."""
    max_tokens: Annotated[int, Field(ge=1, le=65_536)] = 256
    """Maximum length of an answer, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    top_k: Annotated[int, Field(ge=2)] | None = 50
    """Sample from this number of most likely tokens. `null` samples from all."""
    advantage: Advantage = Advantage()
    """How rewards become advantages."""
    reward: RlReward = RlReward()
    """Terms that are added to the grade."""
    clip: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Ignore a token once its probability has changed by more than this share since the answer was sampled, if the
    update would move it further. Has an effect only with several updates per step."""
    kl: NonNegative = 0.0
    """Weight of a penalty on the KL divergence from the model at the start. It keeps that model in memory."""
    updates_per_step: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of optimizer steps with the answers of a step."""
    lr_scale: Positive = 0.05
    """Factor on the learning rates of `pretrain`."""
    schedule: RlSchedule = RlSchedule()
    """Learning rate over steps. Default: linear to 0."""
    init_from: InitFrom | None = None
    """Start from these weights instead of this recipe's `sft`: a run, a stage folder or a checkpoint folder."""
