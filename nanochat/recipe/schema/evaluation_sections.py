"""The recipe sections that evaluate: `base_eval` and `chat_eval`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nanochat.recipe.schema.section import Section, StageSection
from nanochat.recipe.schema.values import Count, InitFrom, Name, NonNegative, SplitName
from nanochat.tasks.table import ChatTask, ChoiceTask


class BpbSuite(Section):
    """Bits per byte on held-out documents."""

    task: Literal["bpb"]
    """`bpb`: bits per byte."""
    source: str | None = None
    """Source whose held-out documents are used. Default: the pretraining mixture's first."""
    split: Literal["train", "validation"] = "validation"
    """Which of the source's documents."""
    tokens: Count = 1_000_000
    """Tokens to evaluate, at most."""


class ChoiceSuite(Section):
    """Multiple choice scored by the log-probability of each option."""

    task: ChoiceTask
    """Which problems."""
    source: str
    """Name of the source the task reads."""
    split: SplitName | None = None
    """Split of the source, or rows of it such as `train[-50:]`. Default: the task's usual evaluation split."""
    max_problems: Count | None = None
    """Evaluate at most so many problems, chosen by a fixed shuffle."""
    num_fewshot: Annotated[int, Field(ge=0, le=64)] = 0
    """Solved examples shown before each question."""


class CoreSuite(Section):
    """CORE: the tasks of a DCLM evaluation bundle, averaged after centring."""

    task: Literal["core"]
    """`core`: the CORE metric."""
    source: str
    """Name of the source that holds the bundle folder."""
    max_problems: Count | None = None
    """Problems per task, at most."""


BaseSuite = Annotated[BpbSuite | ChoiceSuite | CoreSuite, Field(discriminator="task")]


class BaseEval(StageSection):
    """The base_eval stage: how well the pretrained model predicts."""

    upstream: ClassVar = ("pretrain",)
    metrics: ClassVar = ("base_core", "base_core_centred")

    suites: Annotated[dict[Name, BaseSuite], Field(min_length=1)]
    """A name of your own to a suite."""
    samples: tuple[str, ...] = ()
    """Prompts the model continues; the text is kept as an artifact."""
    sample_tokens: Annotated[int, Field(ge=1, le=4096)] = 32
    """Tokens per sample."""
    init_from: InitFrom | None = None
    """Evaluate these weights instead of this recipe's pretraining."""


class ChatSuite(Section):
    """One task of the chat evaluation; multiple-choice tasks compare letters, the others generate."""

    task: ChatTask
    """Which problems, and how answers are judged."""
    source: str
    """Name of the source the task reads."""
    split: SplitName = "test"
    """Split of the source, or rows of it such as `train[-50:]`; generated tasks hold out words of their own."""
    max_problems: Count | None = None
    """Evaluate at most so many problems, chosen by a fixed shuffle."""
    num_samples: Annotated[int, Field(ge=1, le=256)] = 1
    """Completions per problem (generative tasks)."""
    max_tokens: Annotated[int, Field(ge=1, le=65536)] = 512
    """Tokens per completion, at most."""
    temperature: NonNegative = 0.0
    """Sampling temperature; 0 is greedy."""
    top_k: Annotated[int, Field(ge=1)] | None = 50
    """Sample among the k likeliest tokens; null for all."""


class ChatEval(StageSection):
    """The chat_eval stage: what the chat model can do."""

    upstream: ClassVar = ("sft", "pretrain")
    metrics: ClassVar = ("chat_core", "chat_core_centred")

    suites: Annotated[dict[Name, ChatSuite], Field(min_length=1)]
    """A name of your own to a suite."""
    init_from: InitFrom | None = None
    """Evaluate these weights instead of this recipe's SFT (or pretraining)."""
