"""Checks the section `sweep` of a merged recipe: what its fields name must exist, and they must fit together.

Not here: whether the values of the fields are valid. Each cell is validated as a recipe of its own (`recipe.sweeps`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nanochat.plurals import several
from nanochat.recipe.check.conditions import ConditionError, parse_condition
from nanochat.recipe.check.result_names import unknown_result
from nanochat.recipe.check.validation import FieldProblem
from nanochat.recipe.merge.tree import KeyPath, Plain, map_of, value_at
from nanochat.recipe.schema.recipe import STAGE_SECTIONS
from nanochat.recipe.schema.suggestions import did_you_mean
from nanochat.recipe.schema.sweep_section import SWEPT_SECTIONS

_NOT_COMPUTED = {
    "run": "`run` never changes what is computed",
    "tracking": "`tracking` never changes what is computed",
    "expect": "`expect` never changes what is computed",
    "description": "the description never changes what is computed",
    "name": "each cell has a name of its own already",
    "nanochat": "the format of the recipe is the same in every cell",
    "extends": "`extends` can only be set at the top of a recipe",
    "sweep": "a cell has no sweep of its own",
    "seed": "the seeds of a sweep are a field of their own",
}
_WIDTH_OF_SEARCH = ("over", "zip", "where")
_NUMBERS = (int, float)


def check_sweep(data: Mapping[str, Plain]) -> list[FieldProblem]:
    """Return the problems of the section `sweep` of a merged recipe."""
    sweep = data.get("sweep")
    if not isinstance(sweep, dict):
        return []
    checks = (_check_content, _check_keys, _check_zip, _check_seeds, _check_where, _check_ranking, _check_fit)
    return [problem for check in (*checks, _check_search, _check_places) for problem in check(data, sweep)]


def _swept_paths(sweep: Mapping[str, Plain]) -> list[tuple[KeyPath, str]]:
    """Return the place of each swept field in the recipe, and its dotted path."""
    places: list[KeyPath] = [("sweep", field) for field in SWEPT_SECTIONS]
    places.append(("sweep", "search", "space"))
    paths = []
    for place in places:
        paths += [((*place, key), key) for key in map_of(value_at(sweep, place[1:]))]
    return paths


def _check_content(_data: Mapping[str, Plain], sweep: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    if not any(sweep.get(name) is not None and sweep.get(name) != {} for name in (*SWEPT_SECTIONS, "seeds", "search")):
        message = "the sweep varies nothing"
        help_ = "add `over`, a map from dotted paths to lists of values, or `seeds`"
        yield FieldProblem(("sweep",), "missing-field", message, help_, at_key=True)


def _check_keys(_data: Mapping[str, Plain], sweep: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    seen: list[str] = []
    for place, key in _swept_paths(sweep):
        first = key.partition(".")[0]
        if not all(part and part == part.strip() for part in key.split(".")):
            help_ = "write the names of the sections and the field with dots between them: `model.n_layer`"
            yield FieldProblem(place, "bad-sweep", f"`{key}` is not the dotted path of a field", help_, at_key=True)
        elif first in _NOT_COMPUTED:
            help_ = "use `sweep.seeds`" if first == "seed" else "sweep over fields of the stages, the model or the data"
            message = f"`{key}` cannot be swept: {_NOT_COMPUTED[first]}"
            yield FieldProblem(place, "bad-sweep", message, help_, at_key=True)
        twin = next((x for x in seen if key == x or key.startswith(f"{x}.") or x.startswith(f"{key}.")), None)
        if twin is not None:
            message = f"`{key}` and `{twin}` would both set the same value"
            yield FieldProblem(place, "bad-sweep", message, "sweep over one of them", at_key=True)
        seen.append(key)


def _check_zip(_data: Mapping[str, Plain], sweep: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    lengths = {key: len(values) for key, values in map_of(sweep.get("zip")).items() if isinstance(values, tuple)}
    first = next(iter(lengths), "")
    for key, length in lengths.items():
        if length != lengths[first]:
            message = f"`{key}` has {several(length, 'value')}, but `{first}` has {lengths[first]}"
            help_ = "lists of `zip` are read side by side, so they must be of the same length"
            yield FieldProblem(("sweep", "zip", key), "unequal-zip", message, help_, at_key=True)


def _check_seeds(_data: Mapping[str, Plain], sweep: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    seeds = sweep.get("seeds")
    for number, seed in enumerate(seeds if isinstance(seeds, tuple) else ()):
        if isinstance(seeds, tuple) and seed in seeds[:number]:
            yield FieldProblem(("sweep", "seeds", number), "bad-sweep", f"the seed {seed} is listed twice")


def _check_where(_data: Mapping[str, Plain], sweep: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    where = sweep.get("where")
    known = [key for place, key in _swept_paths(sweep) if place[1] in SWEPT_SECTIONS]
    places: list[tuple[KeyPath, Plain]] = [(("sweep", "where"), where)]
    if isinstance(where, tuple):
        places = [(("sweep", "where", number), text) for number, text in enumerate(where)]
    for place, text in places:
        try:
            parse_condition(text, known) if isinstance(text, str) else None
        except ConditionError as error:
            yield FieldProblem(place, "bad-condition", str(error), error.help)


def _check_ranking(data: Mapping[str, Plain], sweep: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    until = sweep.get("until")
    present = [name for name in STAGE_SECTIONS if name in data]
    if isinstance(until, str) and until not in present:
        message = f"the recipe has no stage `{until}`"
        yield FieldProblem(("sweep", "until"), "missing-stage", message, did_you_mean(until, present))
    for key in map_of(sweep.get("rank_by")):
        place: KeyPath = ("sweep", "rank_by", key)
        stage = key.partition(".")[0]
        if (problem := unknown_result(data, place)) is not None:
            yield problem
        elif until in present and present.index(stage) > present.index(str(until)):
            message = f"the cells stop after `{until}`, so they have no `{key}`"
            yield FieldProblem(place, "unknown-result", message, "set `sweep.until` to a later stage", at_key=True)


def _check_fit(data: Mapping[str, Plain], sweep: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    if sweep.get("fit") not in ("isoflop", "power"):
        return
    if "min" not in map_of(sweep.get("rank_by")).values():
        message = f"`fit: {sweep['fit']}` needs `sweep.rank_by` with a loss that is to be small"
        help_ = "write, for example, `rank_by: {base_eval.bpb: min}`"
        yield FieldProblem(("sweep", "fit"), "missing-field", message, help_, at_key=True)
    if "pretrain" not in data:
        message = "a scaling law is fitted to models that are pretrained, and the recipe has no `pretrain`"
        yield FieldProblem(("sweep", "fit"), "missing-stage", message, at_key=True)


def _check_search(_data: Mapping[str, Plain], sweep: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    if not isinstance(search := sweep.get("search"), dict):
        return
    for name in _WIDTH_OF_SEARCH:
        if sweep.get(name) not in (None, {}):
            message = f"`{name}` cannot be combined with `search`, which chooses the values itself"
            yield FieldProblem(("sweep", name), "conflict", message, "move its fields to `search.space`", at_key=True)
    if not map_of(sweep.get("rank_by")):
        message = "`sweep.search` needs `sweep.rank_by`, the result to improve"
        help_ = "write, for example, `rank_by: {base_eval.bpb: min}`"
        yield FieldProblem(("sweep", "search"), "missing-field", message, help_, at_key=True)
    for key, space in map_of(search.get("space")).items():
        if search.get("prune") is not None and key.partition(".")[0] == "tokenizer":
            message = f"`prune` compares training losses, and those of models with another `{key}` do not compare"
            yield FieldProblem(("sweep", "search", "prune"), "conflict", message, "remove `prune`", at_key=True)
        yield from _check_space(("sweep", "search", "space", key), map_of(space))


def _check_space(place: KeyPath, space: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    low, high, step = space.get("min"), space.get("max"), space.get("step")
    if low is not None and high is None:
        yield FieldProblem(place, "missing-field", "`min` needs `max`", "give both, or `choices`", at_key=True)
    if not isinstance(low, _NUMBERS) or not isinstance(high, _NUMBERS):
        return
    if low >= high:
        yield FieldProblem((*place, "max"), "out-of-range", f"`max` must be above `min`, which is {low}")
    if space.get("log") and low <= 0:
        yield FieldProblem((*place, "min"), "out-of-range", "`min` must be above 0 for a search in the logarithm")
    if isinstance(step, _NUMBERS) and step <= 0:
        yield FieldProblem((*place, "step"), "out-of-range", "`step` must be above 0")
    if step is not None and space.get("log"):
        message = "`step` cannot be combined with `log`"
        yield FieldProblem((*place, "step"), "conflict", message, "remove one of them", at_key=True)
    if isinstance(step, float) and isinstance(low, int) and isinstance(high, int) and not step.is_integer():
        message = "`step` must be a whole number if `min` and `max` are"
        yield FieldProblem((*place, "step"), "out-of-range", message, "write `min` with a decimal point")


def _check_places(_data: Mapping[str, Plain], sweep: Mapping[str, Plain]) -> Iterator[FieldProblem]:
    if sweep.get("parallel") is not None and sweep.get("hostfile") is not None:
        message = "`parallel` cannot be combined with `hostfile`"
        help_ = "the hostfile has one entry for each cell that runs at a time"
        yield FieldProblem(("sweep", "parallel"), "conflict", message, help_, at_key=True)
