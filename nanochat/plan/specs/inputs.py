"""The inputs of a stage: a source, and the part of it that is read."""

from __future__ import annotations

from collections.abc import Iterable

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.plan.specs.spec import Spec
from nanochat.plan.specs.suites import (
    AnyChatSuiteSpec,
    BaseSuiteSpec,
    BpbSuiteSpec,
    ChatQuestionsSpec,
    ChatSuiteSpec,
    ChoiceSuiteSpec,
    CoreSuiteSpec,
    LmEvalSuiteSpec,
    PythonSuiteSpec,
    QuestionsSuiteSpec,
)
from nanochat.tasks.table import SftTask


class WeightedSource(Spec):
    """One source of a pretraining mixture."""

    source: SourceSpec
    weight: float


class SftItem(Spec):
    """One task of the SFT mixture."""

    name: str
    task: SftTask
    source: SourceSpec
    split: str
    max_examples: int | None
    repeat: int
    weight: float | None = None
    validation_split: str | None = None
    """The split whose examples are held out."""
    validation_frac: float | None = None
    """The share of the examples that is held out, by a hash of each."""
    is_held_out: bool = False
    """Whether all examples are held out, and none is trained on."""

    @property
    def is_validated(self) -> bool:
        """Whether some of the task's examples are held out for validation."""
        return self.validation_split is not None or self.validation_frac is not None

    @property
    def held_out_split(self) -> SftItem | None:
        """The same task on the split that is held out; None without such a split."""
        if self.validation_split is None:
            return None
        held_out = {"max_examples": None, "validation_split": None, "is_held_out": True}
        return self.model_copy(update={"split": self.validation_split, **held_out})


Input = (
    WeightedSource | BpbSuiteSpec | ChoiceSuiteSpec | CoreSuiteSpec | QuestionsSuiteSpec | SftItem | ChatSuiteSpec
    | ChatQuestionsSpec
)  # fmt: skip
"""One thing that a stage reads: a source, and what is read from it."""


def inputs_of(suites: Iterable[BaseSuiteSpec | AnyChatSuiteSpec]) -> tuple[Input, ...]:
    """Return the suites that read a source."""
    return tuple(suite for suite in suites if not isinstance(suite, LmEvalSuiteSpec | PythonSuiteSpec))


def sources_of(inputs: Iterable[Input]) -> tuple[SourceSpec, ...]:
    """Return the sources of some inputs, each once, sorted by name."""
    by_name = {item.source.name: item.source for item in inputs}
    return tuple(by_name[name] for name in sorted(by_name))
