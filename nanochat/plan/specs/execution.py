"""How to execute a stage, besides what it computes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nanochat.plan.specs.inputs import Input, inputs_of
from nanochat.plan.specs.spec import Spec
from nanochat.plan.specs.suites import AnyChatSuiteSpec, BaseSuiteSpec


class ExecutionSpec(Spec):
    """How to execute a stage; never part of a fingerprint."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    micro_batch_size: int | None = None
    batch_halvings: int = 0
    """How often the automatic batch of this stage is halved, because memory ran out."""
    activation_checkpointing: bool = False
    threads: int = 1
    memory_limit_bytes: int | None = None
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float | None = None
    checkpoint_keep: int = 2
    checkpoint_keep_when_done: bool = False
    log_every_steps: int = 1
    validate_every_steps: int | None = None
    validate_tokens: int = 131_072
    sample_every_steps: int | None = None
    prompts: tuple[str, ...] = ()
    suites: dict[str, BaseSuiteSpec] = Field(default={})
    """Suites to run while this stage trains."""
    chat_suites: dict[str, AnyChatSuiteSpec] = Field(default={})
    """The same, but suites of chats. No name is in both."""
    suites_every_steps: int = 500
    token_cache: bool = False
    offline: bool = False
    accept_unisolated_programs: bool = False
    processes: int = 1
    """Number of processes that train together. Evaluations run in one."""
    collectives: Literal["auto", "ring", "nccl", "jaccl", "mpi"] = "auto"
    hostfile: str | None = None
    """Absolute path."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs that monitoring reads, besides those of the stage itself."""
        return inputs_of((*self.suites.values(), *self.chat_suites.values()))

    @property
    def has_suites(self) -> bool:
        """Whether suites run while the stage trains."""
        return bool(self.suites or self.chat_suites)

    @property
    def processes_here(self) -> int:
        """Processes that share this machine's memory: all of them, or one if a hostfile distributes them."""
        return self.processes if self.hostfile is None else 1
