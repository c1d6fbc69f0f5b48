"""The specification of any stage, and the job that a child process receives."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.plan.specs.evaluation import BaseEvalSpec, ChatEvalSpec, ExportSpec
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plan.specs.inputs import Input, sources_of
from nanochat.plan.specs.spec import Spec, StageName
from nanochat.plan.specs.training import PretrainSpec, RlSpec, SftSpec, TokenizerSpec
from nanochat.storage.integrity import FileDigest

StageSpec = Annotated[
    TokenizerSpec | PretrainSpec | BaseEvalSpec | SftSpec | RlSpec | ChatEvalSpec | ExportSpec,
    Field(discriminator="stage"),
]


def stage_sources(spec: StageSpec) -> tuple[SourceSpec, ...]:
    """Return the sources that a stage reads, each once, sorted by name."""
    return sources_of(spec.inputs)


class Job(Spec):
    """Everything that a child process needs to run one stage. It is read from `job.json` in the stage's folder."""

    spec: StageSpec
    execution: ExecutionSpec
    stage_dir: str
    upstream: dict[StageName, str]
    """The folder `out/` of each stage that this one reads."""
    inputs: dict[str, FileDigest] = Field(default={})
    """Sizes and digests that the files of these folders, and of the model to start from, must have, by path."""
    origin: str = ""
    """Where the model comes from, as Markdown for the card of an exported model."""

    @property
    def data(self) -> tuple[Input, ...]:
        """Everything that the stage reads from sources."""
        return (*self.spec.inputs, *self.execution.inputs)
