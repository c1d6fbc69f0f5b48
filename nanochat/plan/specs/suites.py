"""The specifications of suites: what an evaluation asks and how it judges the answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.plan.specs.spec import Spec
from nanochat.tasks.custom.python_files import PythonFile
from nanochat.tasks.table import TASKS, ChatTask, ChoiceTask, GradeRule


class BpbSuiteSpec(Spec):
    """Bits per byte of held-out documents."""

    task: Literal["bpb"] = "bpb"
    source: SourceSpec
    split: Literal["train", "validation"]
    tokens: int


class ChoiceSuiteSpec(Spec):
    """Multiple choice by log-probability."""

    task: ChoiceTask
    source: SourceSpec
    split: str | None
    max_problems: int | None
    num_fewshot: int


class CoreSuiteSpec(Spec):
    """The DCLM bundle."""

    task: Literal["core"] = "core"
    source: SourceSpec
    max_problems: int | None


class QuestionsSuiteSpec(Spec):
    """The user's own questions, with choices that are compared by log-probability."""

    task: Literal["questions"] = "questions"
    source: SourceSpec
    split: str
    max_problems: int | None
    num_fewshot: int
    fewshot_split: str
    system: str


class LmEvalSuiteSpec(Spec):
    """A task of lm-evaluation-harness. The library reads its data."""

    task: Literal["lm_eval"] = "lm_eval"
    name: str
    """A name of the library, or the absolute path of a YAML file."""
    files: str
    """A digest of the YAML file and of the files that it names; empty for a name of the library."""
    max_problems: int | None
    num_fewshot: int | None
    metric: str | None


class GeneratedAnswers(Spec):
    """How the answers of a suite are generated."""

    num_samples: int
    max_tokens: int
    temperature: float
    top_k: int | None


class ChatSuiteSpec(GeneratedAnswers):
    """One task of the chat evaluation."""

    task: ChatTask
    source: SourceSpec
    split: str
    max_problems: int | None

    @property
    def runs_programs(self) -> bool:
        """Whether grading runs programs of the model or of the user. So in the other specifications."""
        return TASKS[self.task].runs_programs


class ChatQuestionsSpec(GeneratedAnswers, QuestionsSuiteSpec):
    """The user's own questions, whose answers are generated and graded."""

    grade: GradeRule
    program: PythonFile | None

    @property
    def runs_programs(self) -> bool:
        return self.program is not None


class PythonSuiteSpec(GeneratedAnswers):
    """A task that a class of the user's asks and grades. It reads no source."""

    task: Literal["python"] = "python"
    file: PythonFile
    max_problems: int | None

    @property
    def runs_programs(self) -> bool:
        return True


BaseSuiteSpec = Annotated[
    BpbSuiteSpec | ChoiceSuiteSpec | CoreSuiteSpec | QuestionsSuiteSpec | LmEvalSuiteSpec, Field(discriminator="task")
]
AnyChatSuiteSpec = ChatQuestionsSpec | PythonSuiteSpec | ChatSuiteSpec
