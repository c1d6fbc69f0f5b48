"""The specifications of the stages that use a finished model: evaluations and the export."""

from __future__ import annotations

from typing import Literal

from nanochat.export.model_config import Format
from nanochat.plan.specs.inputs import Input, inputs_of
from nanochat.plan.specs.spec import Spec
from nanochat.plan.specs.suites import AnyChatSuiteSpec, BaseSuiteSpec, ChatQuestionsSpec, ChatSuiteSpec


class BaseEvalSpec(Spec):
    """Evaluate a base model."""

    stage: Literal["base_eval"] = "base_eval"
    suites: dict[str, BaseSuiteSpec]
    samples: tuple[str, ...]
    sample_tokens: int
    init_from: str | None
    seed: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return inputs_of(self.suites.values())


class ChatEvalSpec(Spec):
    """Evaluate a chat model."""

    stage: Literal["chat_eval"] = "chat_eval"
    suites: dict[str, AnyChatSuiteSpec]
    init_from: str | None
    seed: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return inputs_of(self.suites.values())


class ExportSpec(Spec):
    """Write a model for other programs, and try it out."""

    stage: Literal["export"] = "export"
    formats: tuple[Format, ...]
    bits: int | None
    """Bits per number in the format `mlx`. None if it is not quantized."""
    group_size: int | None
    prompts: tuple[str, ...]
    max_tokens: int
    suites: dict[str, ChatSuiteSpec | ChatQuestionsSpec]
    is_chat: bool
    """Whether the prompts are questions, and not texts to continue."""
    init_from: str | None
    seed: int

    @property
    def is_checked(self) -> bool:
        """Whether the exported models are run."""
        return bool(self.prompts or self.suites)

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(self.suites.values())
