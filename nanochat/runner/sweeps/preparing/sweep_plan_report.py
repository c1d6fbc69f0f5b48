"""Shows the plan of a sweep: its cells, the stages that they share, and what all of it costs. As text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from pydantic import JsonValue

from nanochat.plan.estimate.estimate import Estimate
from nanochat.plan.quantities import show_bytes, show_duration, show_flops
from nanochat.plan.sweeps import total_cost
from nanochat.plan.text.render import text_table, titled_lines
from nanochat.plurals import several
from nanochat.recipe.sweeps.labels import SEED, differing_paths, short_names, show_swept
from nanochat.runner.sweeps.preparing.prepare_sweep import PreparedCell, PreparedSweep

_SHOWN_CELLS = 60
_COSTS = ("FLOPs", "memory", "disk", "time")


def sweep_report_text(sweep: PreparedSweep) -> str:
    """Return the plan of a sweep as `nanochat-run plan` prints it."""
    parts = [_title(sweep), _cell_table(sweep), _stage_table(sweep)]
    if notes := _notes(sweep):
        parts.append(titled_lines("notes", notes))
    if sweep.problems:
        missing = "\n".join(f"  - {problem}" for problem in sweep.problems)
        parts.append(f"missing inputs (the plan is valid, but the cache cannot be checked without them)\n{missing}")
    return "\n\n".join(parts) + "\n"


def _notes(sweep: PreparedSweep) -> list[str]:
    """Return the notes that all cells share, and how many others there are."""
    counts = Counter(note for x in sweep.cells for note in x.prepared.plan.notes)
    shared = [note for note, count in counts.items() if count == len(sweep.cells)]
    if sweep.section.parallel not in (None, 1) or sweep.section.hostfile is not None:
        shared.insert(0, "time is that of all stages one after another; less if several cells run at a time")
    single = sum(count < len(sweep.cells) for count in counts.values())
    if not single:
        return shared
    others = several(single, "more note")
    return [*shared, f"{others} about single cells; `--set sweep=null`, with the values of a cell, plans it alone"]


def sweep_report_json(sweep: PreparedSweep) -> dict[str, JsonValue]:
    """Return the plan of a sweep as JSON values: cells, stages with the cells that use them, and the cost."""
    return {
        "sweep": sweep.name,
        "section": json.loads(sweep.section.model_dump_json(exclude_defaults=True)),
        "cells": [_cell_to_json(x) for x in sweep.cells],
        "stages": [
            {
                "stage": shared.stage.name,
                "cells": list(shared.cells),
                "identity": dict(shared.stage.identity),
                "estimate": asdict(shared.stage.estimate),
            }
            for shared in sweep.shared_stages()
        ],
        "totals": asdict(total_cost(sweep.shared_stages())),
        "totals_to_run": asdict(total_cost(sweep.stages_to_run())),
        "missing": list(sweep.problems),
    }


def _cell_to_json(x: PreparedCell) -> JsonValue:
    return {
        "cell": x.cell.number,
        "run": x.cell.name,
        "seed": x.cell.seed,
        "values": json.loads(json.dumps(dict(x.cell.values))),
        "stages": {lookup.stage.name: lookup.action for lookup in x.lookups},
        "command": x.cell.loaded.command(),
    }


def _title(sweep: PreparedSweep) -> str:
    section, count = sweep.section, len(sweep.cells)
    stages = len(sweep.shared_stages())
    if section.search is not None:
        tries = f"a search with {several(section.search.trials, 'trial')} by {section.search.engine}"
        lines = [f"{sweep.name}: {tries}; the plan shows {several(count, 'example')}"]
    else:
        all_stages = sum(len(x.lookups) for x in sweep.cells)
        lines = [f"{sweep.name}: {several(count, 'cell')}, {several(stages, 'stage')} (without sharing: {all_stages})"]
    for path in differing_paths([x.cell for x in sweep.cells]):
        values = dict.fromkeys(show_swept(x.cell.values[path]) for x in sweep.cells)
        lines.append(f"  {path}: {' | '.join(values)}")
    if seeds := list(dict.fromkeys(x.cell.seed for x in sweep.cells)):
        lines.append(f"  {SEED}: {' | '.join(map(str, seeds))}")
    if section.ranking is not None:
        name, order = section.ranking
        lines.append(f"  ranked by {name}, the {'smallest' if order == 'min' else 'largest'} first")
    return "\n".join(lines)


def _cell_table(sweep: PreparedSweep) -> str:
    paths = differing_paths([x.cell for x in sweep.cells])
    names = short_names(paths)
    head = ("cell", *(names[path] for path in paths), SEED, "status", "run")
    rows = [
        (
            str(x.cell.number),
            *(show_swept(x.cell.values[path]) for path in paths),
            str(x.cell.seed),
            _status(x),
            x.cell.name,
        )
        for x in sweep.cells
    ]
    more = len(rows) - _SHOWN_CELLS
    table = text_table([head, *rows[:_SHOWN_CELLS]], "r" * (len(paths) + 2) + "ll")
    return f"{table}\n... and {several(more, 'more cell')}" if more > 0 else table


def _status(x: PreparedCell) -> str:
    """Return the action for the stages of a cell: `cached`, or the number of stages that run."""
    counts = Counter(lookup.action for lookup in x.lookups)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{action} {count}" for action, count in counts.items())


def _stage_table(sweep: PreparedSweep) -> str:
    """Return a table with a row for each kind of stage: how many are computed, for how many cells, at what cost."""
    shared, to_run = sweep.shared_stages(), sweep.stages_to_run()
    rows: list[Sequence[str]] = [("stage", "different", "to run", "cells", *_COSTS)]
    for name in dict.fromkeys(x.stage.name for x in shared):
        own, run = [x for x in shared if x.stage.name == name], [x for x in to_run if x.stage.name == name]
        users = len({number for x in own for number in x.cells})
        rows.append((name, str(len(own)), str(len(run)), str(users), *_costs(total_cost(run))))
    rows.append(("total", str(len(shared)), str(len(to_run)), "", *_costs(total_cost(to_run))))
    return text_table(rows, "lrrr" + "r" * len(_COSTS), has_total=True)


def _costs(cost: Estimate) -> tuple[str, ...]:
    return (
        show_flops(cost.flops),
        show_bytes(cost.peak_memory_bytes),
        show_bytes(cost.kept_disk_bytes),
        "-" if cost.seconds is None else f"~{show_duration(cost.seconds)}",
    )
