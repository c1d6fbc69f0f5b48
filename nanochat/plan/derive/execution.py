"""How stages are executed, which never changes their result: the section `run`, and the suites during training."""

from __future__ import annotations

from collections.abc import Mapping

from nanochat.plan.derive.derivation import Derivation
from nanochat.plan.derive.evals import derive_base_suites, derive_chat_suites
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plan.specs.suites import AnyChatSuiteSpec, BaseSuiteSpec
from nanochat.recipe.schema.execution_sections import Run

_PATH = ("run", "monitor", "evaluate")
_SAME_IN_SPEC = {"device", "dtype", "activation_checkpointing", "threads", "offline", "accept_unisolated_programs"}
"""Fields of `run` that execution takes as they are."""


def execution_spec(run: Run) -> ExecutionSpec:
    """Return how stages are executed. A micro-batch size of `auto` becomes None."""
    return ExecutionSpec(
        **run.model_dump(include=_SAME_IN_SPEC),
        micro_batch_size=None if run.micro_batch_size == "auto" else run.micro_batch_size,
        memory_limit_bytes=run.limits.memory,
        **{f"checkpoint_{name}": value for name, value in run.checkpoint},
        **run.monitor.model_dump(exclude={"evaluate"}),
        token_cache=run.data.token_cache,
        processes=run.distributed.processes,
        collectives=run.distributed.backend,
        hostfile=run.distributed.hostfile,
    )


def derive_monitored(execution: ExecutionSpec, given: Derivation) -> Mapping[str, ExecutionSpec]:
    """Return the execution of the stages that are evaluated while they train, by name."""
    section = given.recipe.run.monitor.evaluate
    suites = derive_base_suites(section.suites, (*_PATH, "suites"), given)
    chat_suites = derive_chat_suites(section.chat_suites, (*_PATH, "chat_suites"), given)
    for name in suites.keys() & chat_suites.keys():
        message = f"`{name}` is also the name of one of `suites`, and both are logged as `eval/{name}`"
        given.issues.refuse((*_PATH, "chat_suites", name), "duplicate-name", message, advice="choose another name")

    def with_suites(chats: dict[str, AnyChatSuiteSpec]) -> ExecutionSpec:
        fields: dict[str, dict[str, BaseSuiteSpec] | dict[str, AnyChatSuiteSpec] | int] = {
            "suites": suites,
            "chat_suites": chats,
            "suites_every_steps": section.every_steps,
        }
        return execution.model_copy(update=fields)

    return {"pretrain": with_suites({}), "sft": with_suites(chat_suites)}
