"""The table of `equal_tokens.py`: what all runs measured, and `current` minus the peer, seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from parts.equal_tokens_run import Result, Run, System

TOLERANCE = 0.002
"""Allowed excess of `current` over `peer`, in bits per byte."""


def report(results: Mapping[Run, Result]) -> bool:
    """Print a table over the seeds. Return whether `current` is as good as every `peer` it was compared with."""
    groups: dict[tuple[int, int], dict[tuple[System, float], dict[int, Result]]] = {}
    for run, result in results.items():
        systems = groups.setdefault((run.depth, run.steps), {})
        systems.setdefault((run.system, run.weight_decay), {})[run.seed] = result
    is_good = True
    for (depth, steps), systems in sorted(groups.items()):
        print(f"d{depth}, {steps} steps: held-out bits per byte, mean +- deviation over seeds; training loss")
        for (system, decay), by_seed in systems.items():
            bpb = _mean_and_deviation([result.bpb for result in by_seed.values()], digits=4)
            loss = statistics.mean(result.train_loss for result in by_seed.values())
            print(f"  {system:<8} weight decay {decay:<6.3g} {bpb}; {loss:.4f}")
        peers = [measured for (system, _), measured in systems.items() if system == "peer"]
        for (system, decay), by_seed in systems.items():
            for theirs in peers if system == "current" else ():
                excess = [by_seed[seed].bpb - theirs[seed].bpb for seed in by_seed.keys() & theirs.keys()]
                if excess:
                    shown = _mean_and_deviation(excess, digits=5)
                    print(f"  current, weight decay {decay:.3g}, minus peer, seed by seed: {shown}")
                    is_good &= statistics.mean(excess) <= TOLERANCE
    return is_good


def _mean_and_deviation(values: Sequence[float], *, digits: int) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    listed = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} +- {deviation:.{digits}f} ({listed})"
