"""Renders a plan as text for a terminal, and as JSON. The caller provides the status of each stage."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from pydantic import JsonValue

from nanochat.plan.estimate.estimate import Estimate, total
from nanochat.plan.plan import Plan, StagePlan
from nanochat.plan.quantities import show_bytes, show_count, show_duration, show_flops
from nanochat.plan.specs.spec import StageName
from nanochat.plan.stages import STAGES
from nanochat.plurals import several

WIDTH = 100
_STARTS_FROM = "starts from "
_HEAD: tuple[str, ...] = ("stage", "status", "tokens", "FLOPs", "memory", "disk", "time")
_ALIGNMENT = "llrrrrr"
_NEARLY_ALL = 0.98
"""A total of at least this share of a sum looks like the sum."""


@dataclass(frozen=True)
class StageStatus:
    """The action for a stage (`run`, `resume`, `cached`), and the reason."""

    text: str
    why: str = ""

    @property
    def costs_nothing(self) -> bool:
        """Whether the stage is not computed now."""
        return self.text in ("cached", "skip")


def render_plan(plan: Plan, statuses: Mapping[StageName, StageStatus]) -> str:
    """Return the plan as `nanochat-run plan` shows it."""
    shown = {stage.name: statuses.get(stage.name, StageStatus("")) for stage in plan.stages}
    notes = [*plan.notes, *_total_notes(_estimates_to_run(plan, shown))]
    parts = [_title(plan), _table(plan, shown), *(_describe(stage, shown[stage.name]) for stage in plan.stages)]
    if plan.expectations:
        parts.append(titled_lines("expected", (f"{name} {condition}" for name, condition in plan.expectations.items())))
    if notes:
        parts.append(titled_lines("notes", notes))
    return "\n\n".join(parts) + "\n"


def plan_to_json(plan: Plan, statuses: Mapping[StageName, StageStatus]) -> dict[str, JsonValue]:
    """Return the plan as JSON values: specifications, identities, estimates, statuses."""
    shown = {stage.name: statuses.get(stage.name, StageStatus("")) for stage in plan.stages}
    return {
        "recipe": plan.recipe_name,
        "seed": plan.seed,
        "stages": [_stage_to_json(stage, shown[stage.name]) for stage in plan.stages],
        "totals": asdict(plan.totals),
        "totals_to_run": asdict(total(_estimates_to_run(plan, shown))),
        "expect": dict(plan.expectations),
        "notes": list(plan.notes),
    }


def _stage_to_json(stage: StagePlan, status: StageStatus) -> JsonValue:
    return {
        "stage": stage.name,
        "status": status.text,
        "why": status.why,
        "upstream": list(stage.upstream),
        "spec": stage.spec.model_dump(mode="json"),
        "execution": stage.execution.model_dump(mode="json"),
        "identity": dict(stage.identity),
        "sources": dict(stage.source_digests),
        "estimate": asdict(stage.estimate),
    }


def _title(plan: Plan) -> str:
    lines = [f"{plan.recipe_name}: {several(len(plan.stages), 'stage')}, seed {plan.seed}"]
    lines += textwrap.wrap(" ".join(plan.description.split()), WIDTH, max_lines=3)
    for config in dict.fromkeys(stage.model for stage in plan.stages if stage.model is not None):
        lines.append(
            f"model: {config.num_parameters():,} parameters, {config.flops_per_token():,} training FLOPs per token"
        )
        lines.append(
            f"       {several(config.n_layer, 'layer')}, width {config.n_embd}, {several(config.n_head, 'head')} "
            f"of {config.head_dim}"
            f"{'' if config.n_kv_head == config.n_head else f' ({config.n_kv_head} for keys)'}, "
            f"context {config.sequence_len:,}, windows {config.window_pattern}, {config.architecture}"
        )
    return "\n".join(lines)


def _table(plan: Plan, statuses: Mapping[StageName, StageStatus]) -> str:
    """Return a row for each stage, and the total. A stage that is not computed now costs nothing."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for stage in plan.stages:
        status = statuses[stage.name]
        rows.append((stage.name, status.text, *_costs(Estimate() if status.costs_nothing else stage.estimate)))
    to_run = total(_estimates_to_run(plan, statuses))
    return text_table([*rows, ("total", "", *_costs(to_run))], _ALIGNMENT, has_total=True)


def _estimates_to_run(plan: Plan, statuses: Mapping[StageName, StageStatus]) -> list[Estimate]:
    return [stage.estimate for stage in plan.stages if not statuses[stage.name].costs_nothing]


def _total_notes(estimates: Sequence[Estimate]) -> Iterator[str]:
    """Yield why the total of disk space is less than the sum of the stages, if it is."""
    of_stages = [estimate.disk_bytes for estimate in estimates if estimate.disk_bytes is not None]
    if (total(estimates).disk_bytes or 0) < _NEARLY_ALL * sum(of_stages):
        yield "the total of disk space is the most in use at a time: a stage deletes its checkpoints when it is done"


def text_table(rows: Sequence[Sequence[str]], alignment: str, *, has_total: bool = False) -> str:
    """Return a table with a rule below its first row, and above its last if that is a total.

    `alignment` has a letter for each column: `l` for left or `r` for right.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(alignment))]
    text = [_row(row, widths, alignment).rstrip() for row in rows]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [*text[1:-1], rule, text[-1]] if has_total else text[1:]
    return "\n".join([text[0], rule, *body])


def _costs(cost: Estimate) -> tuple[str, str, str, str, str]:
    return (
        show_count(cost.tokens),
        show_flops(cost.flops),
        show_bytes(cost.peak_memory_bytes),
        show_bytes(cost.disk_bytes),
        "-" if cost.seconds is None else f"~{show_duration(cost.seconds)}",
    )


def _row(cells: Sequence[str], widths: Sequence[int], alignment: str) -> str:
    shown = (
        cell.rjust(width) if letter == "r" else cell.ljust(width)
        for cell, width, letter in zip(cells, widths, alignment, strict=True)
    )
    return "  ".join(shown)


def _describe(stage: StagePlan, status: StageStatus) -> str:
    lines = [STAGES[stage.name].describe(stage.spec)]
    if suites := [*stage.execution.suites, *stage.execution.chat_suites]:
        lines.append(_describe_suites(stage, suites))
        if status.text == "cached":
            lines.append(f"if it was cached without them, `--force {stage.name}` measures them")
    if stage.init_from is not None:
        lines.append(f"{_STARTS_FROM}{stage.init_from}")
    if status.why:
        lines.append(f"{status.text}: {status.why}" if status.text else status.why)
    return titled_lines(stage.name, lines, bullet="")


def _describe_suites(stage: StagePlan, names: Sequence[str]) -> str:
    """Return which suites run while a stage trains, how often, and which share of its time they take."""
    text = f"every {several(stage.execution.suites_every_steps, 'step')} and at the end: {', '.join(names)}"
    of_suites, whole = stage.estimate.suite_seconds, stage.estimate.seconds
    if of_suites is None or not whole:
        return f"{text}; the share of its time is not known before the data or weights are read"
    return f"{text}; about {show_duration(of_suites)}, {of_suites / whole:.0%} of its time"


def titled_lines(title: str, lines: Iterable[str], *, bullet: str = "- ") -> str:
    """Return a title and the lines below it, wrapped and indented. Lines that end in a path stay whole."""
    wrapped = []
    for line in lines:
        if line.startswith(_STARTS_FROM):
            wrapped.append(f"  {bullet}{line}")
            continue
        wrapped += textwrap.wrap(line, WIDTH, initial_indent=f"  {bullet}", subsequent_indent=" " * (2 + len(bullet)))
    return "\n".join([title, *wrapped])
