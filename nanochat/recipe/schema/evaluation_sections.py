"""The sections of the stages that evaluate: `base_eval` and `chat_eval`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nanochat.recipe.schema.section import Section, StageSection
from nanochat.recipe.schema.values import Count, InitFrom, Name, NonNegative, SplitName
from nanochat.tasks.table import ChatTask, ChoiceTask


class BpbSuite(Section):
    """Bits per byte of the documents of a source."""

    task: Literal["bpb"]
    """`bpb`: bits per byte."""
    source: str | None = None
    """Name of the source. Default: the first source of `pretrain.data`."""
    split: Literal["train", "validation"] = "validation"
    """Which documents of the source: those held out for validation, or those used for training."""
    tokens: Count = 1_000_000
    """Maximum number of tokens to evaluate."""


class ChoiceSuite(Section):
    """Multiple-choice problems. The model's answer is the option with the highest log-probability."""

    task: ChoiceTask
    """Kind of problems."""
    source: str
    """Name of the source that holds the problems."""
    split: SplitName | None = None
    """Split of the source, or some of its rows, such as `train[-50:]`. Default: the task's usual evaluation split."""
    max_problems: Count | None = None
    """Maximum number of problems, chosen by a fixed shuffle. Default: all."""
    num_fewshot: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of solved examples in front of each question."""


class CoreSuite(Section):
    """The CORE metric: the mean of the centred accuracies over the tasks of a DCLM evaluation bundle."""

    task: Literal["core"]
    """`core`: the CORE metric."""
    source: str
    """Name of the source whose `path` is the folder of the bundle, or whose `uri` is the address of its archive."""
    max_problems: Count | None = None
    """Maximum number of problems per task. Default: all."""


BaseSuite = Annotated[BpbSuite | ChoiceSuite | CoreSuite, Field(discriminator="task")]


class BaseEval(StageSection):
    """The base_eval stage measures how well the pretrained model predicts text."""

    upstream: ClassVar = ("pretrain",)
    metrics: ClassVar = ("base_core", "base_core_centred")

    suites: Annotated[dict[Name, BaseSuite], Field(min_length=1)]
    """The evaluations: for each, a name of your own and the fields of the evaluation."""
    samples: tuple[str, ...] = ()
    """Prompts for the model to continue. The run keeps the generated text."""
    sample_tokens: Annotated[int, Field(ge=1, le=4096)] = 32
    """Number of tokens to generate per prompt."""
    init_from: InitFrom | None = None
    """Evaluate these weights instead of this recipe's `pretrain`: a run, a stage folder or a checkpoint folder."""


class ChatSuite(Section):
    """A task of the chat evaluation. Multiple-choice tasks compare the probabilities of the letters; in the other tasks
    the model generates an answer."""

    task: ChatTask
    """Kind of problems, and how answers are scored."""
    source: str
    """Name of the source that holds the problems."""
    split: SplitName = "test"
    """Split of the source, or some of its rows, such as `train[-50:]`. The spelling tasks hold out words of their
    own."""
    max_problems: Count | None = None
    """Maximum number of problems, chosen by a fixed shuffle. Default: all."""
    num_samples: Annotated[int, Field(ge=1, le=256)] = 1
    """Number of answers to generate per problem. Multiple-choice tasks ignore it."""
    max_tokens: Annotated[int, Field(ge=1, le=65536)] = 512
    """Maximum length of a generated answer, in tokens."""
    temperature: NonNegative = 0.0
    """Sampling temperature. 0 is greedy."""
    top_k: Annotated[int, Field(ge=1)] | None = 50
    """Sample from this number of most likely tokens. `null` samples from all."""


class ChatEval(StageSection):
    """The chat_eval stage measures what the chat model can do."""

    upstream: ClassVar = ("rl", "sft", "pretrain")
    metrics: ClassVar = ("chat_core", "chat_core_centred")

    suites: Annotated[dict[Name, ChatSuite], Field(min_length=1)]
    """The evaluations: for each, a name of your own and the fields of the evaluation."""
    init_from: InitFrom | None = None
    """Evaluate these weights instead of this recipe's `rl`, `sft` or `pretrain`: a run, a stage folder or a checkpoint
    folder."""
