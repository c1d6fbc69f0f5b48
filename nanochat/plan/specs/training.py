"""The specifications of the stages that train: a tokenizer, or a model."""

from __future__ import annotations

from typing import Literal

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.model.config import GPTConfig
from nanochat.optim.groups import OptimizerConfig
from nanochat.optim.schedules import ScheduleConfig
from nanochat.plan.specs.inputs import Input, SftItem, WeightedSource, inputs_of
from nanochat.plan.specs.spec import Spec
from nanochat.plan.specs.suites import AnyChatSuiteSpec

HandOn = Literal["last", "best"]
"""The model that a training stage passes on: that of the last step, or the one with the lowest validation loss."""


class TokenizerSpec(Spec):
    """Train a tokenizer."""

    stage: Literal["tokenizer"] = "tokenizer"
    source: SourceSpec
    vocab_size: int
    max_chars: int
    max_document_chars: int
    seed: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (WeightedSource(source=self.source, weight=1),)


class PretrainSpec(Spec):
    """Pretrain a model from scratch or from `init_from`."""

    stage: Literal["pretrain"] = "pretrain"
    model: GPTConfig
    data: tuple[WeightedSource, ...]
    steps: int | None
    """None if `minutes` is set."""
    minutes: float | None = None
    """Wall time of training steps. The units of `schedule` are then parts of it, see `optim.schedules`."""
    tokens_per_step: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    weight_decay: float
    buffer_documents: int
    long_documents: Literal["keep", "crop"]
    hand_on: HandOn = "last"
    init_from: str | None
    seed: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return self.data


class SftSpec(Spec):
    """Fine-tune on conversations. Exactly one of `steps`, `tokens`, `epochs`, `minutes` is set."""

    stage: Literal["sft"] = "sft"
    data: tuple[SftItem, ...]
    steps: int | None
    tokens: int | None
    epochs: float | None
    minutes: float | None = None
    sequence_len: int | None
    tokens_per_step: int
    optimizer: OptimizerConfig
    constant_frac: float
    final_frac: float
    buffer_conversations: int
    hand_on: HandOn = "last"
    init_from: str | None
    seed: int

    @property
    def is_validated(self) -> bool:
        """Whether any chats are held out for validation."""
        return any(item.is_validated for item in self.data)

    @property
    def last_step(self) -> int | None:
        """Optimizer steps in all; None if the data or the time decide. A horizon in tokens is rounded to steps."""
        if self.steps is not None:
            return self.steps
        return None if self.tokens is None else max(1, round(self.tokens / self.tokens_per_step))

    @property
    def inputs(self) -> tuple[Input, ...]:
        held_out = (item.held_out_split for item in self.data)
        return (*self.data, *(item for item in held_out if item is not None))


class RewardSpec(Spec):
    """The terms of a reward besides the grade."""

    length: float = 0.0
    form: str | None = None
    form_reward: float = 0.0


class RlItem(Spec):
    """A task to practise on. How its suite generates is not used."""

    suite: AnyChatSuiteSpec
    weight: float | None


class RlSpec(Spec):
    """Train on the model's own answers. Exactly one of `steps` and `epochs` is set."""

    stage: Literal["rl"] = "rl"
    data: dict[str, RlItem]
    held_out: dict[str, AnyChatSuiteSpec]
    steps: int | None
    epochs: float | None
    prompts_per_step: int
    samples_per_prompt: int
    max_tokens: int
    temperature: float
    top_k: int | None
    centre: Literal["group", "none"]
    scale: Literal["none", "std"]
    reward: RewardSpec
    clip: float | None
    kl: float
    updates_per_step: int
    optimizer: OptimizerConfig
    constant_frac: float
    final_frac: float
    init_from: str | None
    seed: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return inputs_of(self.suites.values())

    @property
    def suites(self) -> dict[tuple[str, str], AnyChatSuiteSpec]:
        """The practised and the held-out suites, by field and name."""
        held_out = {("held_out", name): suite for name, suite in self.held_out.items()}
        return {**{("data", name): item.suite for name, item in self.data.items()}, **held_out}

    @property
    def answers_per_step(self) -> int:
        """Answers that all processes sample for a step."""
        return self.prompts_per_step * self.samples_per_prompt
