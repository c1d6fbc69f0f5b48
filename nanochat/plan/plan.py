"""The plan of a run: its stages in order, each with specification, identity and estimate. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pydantic import JsonValue

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.model.config import GPTConfig
from nanochat.plan.estimate.estimate import Estimate
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plan.specs.inputs import Input, sources_of
from nanochat.plan.specs.job import StageSpec
from nanochat.plan.specs.spec import StageName
from nanochat.plan.specs.training import TokenizerSpec

INIT_FROM = "init_from"
"""Key of the digest of the starting weights among a stage's upstream digests."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage: what to compute (`spec`), how (`execution`), and what it reads."""

    name: StageName
    spec: StageSpec
    execution: ExecutionSpec
    model: GPTConfig | None
    """The model that the stage trains or uses. None if it has none, or starts from weights that could not be read."""
    identity: Mapping[str, JsonValue]
    """{stage, code, seed, fields}: see `fingerprint`."""
    upstream: tuple[StageName, ...]
    """Stages of this plan whose output is read; empty if `init_from` takes their place."""
    sources: tuple[SourceSpec, ...]
    """The sources that decide the result."""
    source_digests: Mapping[str, str]
    """By source name; without those that could not be computed."""
    estimate: Estimate

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Everything that the stage reads from sources, also to monitor its training."""
        return (*self.spec.inputs, *self.execution.inputs)

    @property
    def read_sources(self) -> tuple[SourceSpec, ...]:
        """The sources of all `inputs`, sorted by name. `sources` are those that decide the result."""
        return sources_of(self.inputs)

    @property
    def init_from(self) -> str | None:
        """The weights that this stage starts from instead of an upstream stage's, as the recipe names them, or None."""
        return None if isinstance(self.spec, TokenizerSpec) else self.spec.init_from


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A recipe, compiled."""

    recipe_name: str
    description: str
    seed: int
    stages: tuple[StagePlan, ...]
    totals: Estimate
    expectations: Mapping[str, str]
    notes: tuple[str, ...]
    """The decisions of the plan without the recipe, and the assumptions of its estimates."""

    def stage(self, name: str) -> StagePlan:
        """Return the stage of that name, or raise KeyError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def within(self, memory_bytes: int) -> Plan:
        """Return the same plan with another limit on the memory of its stages."""
        limit = {"memory_limit_bytes": memory_bytes}
        stages = (replace(stage, execution=stage.execution.model_copy(update=limit)) for stage in self.stages)
        return replace(self, stages=tuple(stages))
