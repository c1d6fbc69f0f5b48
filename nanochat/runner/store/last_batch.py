"""How often an earlier attempt at a stage halved its batch, because memory ran out.

The job file of the last attempt holds the number. A changed device or memory setting makes it void, and a recipe that
fixes `run.micro_batch_size` decides the rows of a training stage itself.
"""

from __future__ import annotations

from pydantic import ValidationError

from nanochat.plan.plan import StagePlan
from nanochat.plan.specs.job import Job
from nanochat.plan.stages import STAGES
from nanochat.storage.files import read_file
from nanochat.storage.layout import StageFolder

_FIELDS_FOR_MEMORY = (
    *("device", "dtype", "micro_batch_size", "activation_checkpointing"),
    *("memory_limit_bytes", "processes", "hostfile"),
)


def has_automatic_batch(stage: StagePlan) -> bool:
    """Return whether nanochat, not the recipe, chooses how much of its data a stage works on at a time."""
    kind = STAGES[stage.name]
    return kind.evaluates or (kind.trains and stage.execution.micro_batch_size is None)


def last_halvings(stage: StagePlan, folder: StageFolder) -> int:
    """Return how often the last attempt to compute a stage had halved its batch."""
    try:
        last = Job.model_validate_json(read_file(folder.job)).execution
    except (OSError, ValidationError):  # the first attempt, or one of a version with other fields
        return 0
    now = stage.execution
    is_same = all(getattr(last, name) == getattr(now, name) for name in _FIELDS_FOR_MEMORY)
    return last.batch_halvings if is_same and has_automatic_batch(stage) else 0


def describe_last_batch(stage: StagePlan, folder: StageFolder) -> str:
    """Return a clause for the plan of a stage that continues with a smaller batch, empty if it does not."""
    halvings = last_halvings(stage, folder)
    if not halvings:
        return ""
    what = "rows per forward pass" if STAGES[stage.name].trains else "the usual batch size"
    return f"; memory ran out, so it continues with 1/{1 << halvings} of {what}"
