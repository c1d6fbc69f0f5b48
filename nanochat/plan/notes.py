"""Sentences under a plan that say what its estimates assume."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.plan.estimate import AUTO_ROWS, RATES, Estimate, Rate
from nanochat.plan.plan import StagePlan
from nanochat.plan.quantities import show_duration
from nanochat.plan.specs import ExecutionSpec, PretrainSpec, SftSpec


def estimate_notes(stages: Sequence[StagePlan], totals: Estimate, execution: ExecutionSpec, rate: Rate) -> list[str]:
    """Return what the reader should know about the plan's estimates."""
    notes = [f"time is an estimate for {rate.basis}"]
    if totals.flops is not None:
        others = [
            f"{show_duration(totals.flops / one.flops_per_second)} on {one.basis}"
            for one in RATES.values()
            if one != rate
        ]
        notes.append(f"training and evaluation alone would take {', '.join(others)}")
    trains = any(isinstance(stage.spec, PretrainSpec | SftSpec) for stage in stages)
    if trains and execution.micro_batch_size is None:
        notes.append(f"micro_batch_size auto: memory is shown for {AUTO_ROWS} rows, less where a device has less")
    unknown = [stage.name for stage in stages if stage.estimate.flops is None and stage.name != "tokenizer"]
    if unknown:
        notes.append(f"unknown before the data or weights are read, and in no total: {', '.join(unknown)}")
    if any(stage.init_from for stage in stages) or any(source.uri for stage in stages for source in stage.sources):
        notes.append("disk does not count downloads")
    return notes
