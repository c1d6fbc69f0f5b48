"""The section `sweep`: many runs of one recipe that differ in a few fields, and how to rank them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nanochat.recipe.schema.field_types import LocalPath, NonEmptyText
from nanochat.recipe.schema.section import Section

MAX_PARALLEL = 1024
_Number = Annotated[float, Field(allow_inf_nan=False)]
_Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
_Values = Annotated[tuple[object, ...], Field(min_length=1)]
"""Values of one field. Which are valid depends on the field, so each cell is validated as a recipe."""


class Space(Section):
    """The values of a field that a search may try: some `choices`, or the numbers from `min` to `max`."""

    exactly_one = ("choices", "min")
    needs: ClassVar[Mapping[str, str]] = {"max": "min", "log": "min", "step": "min"}

    choices: Annotated[tuple[str | int | float | bool, ...], Field(min_length=1)] | None = None
    """The values, of which any may be tried."""
    min: int | _Number | None = None
    """The smallest value. If `min` and `max` are whole numbers, so are the values between them."""
    max: int | _Number | None = None
    """The largest value."""
    log: bool | None = None
    """Search in the logarithm of the value, as suits learning rates. Default: false."""
    step: int | _Number | None = None
    """Distance between two values, counted from `min`. Default: 1 for whole numbers, else none."""


class Search(Section):
    """Search for good values instead of trying all. Needs `rank_by`, and the extra `nanochat-run[search]`."""

    engine: Literal["optuna"] = "optuna"
    """`optuna` proposes values by a tree-structured Parzen estimator."""
    trials: Annotated[int, Field(ge=1, le=10_000)]
    """Number of settings to try. Each of them is trained with every seed of `seeds`."""
    space: Annotated[dict[str, Space], Field(min_length=1)]
    """The values that may be tried of each field, by its dotted path."""
    prune: Literal["median"] | None = None
    """`median` stops a trial early if its training loss, after 25, 50 or 75 % of the steps, is above the median of the
    trials that have finished, once there are four of them. Its run is kept and can be continued. Default: no trial is
    stopped. Stages that train for a number of minutes or epochs are not judged."""


class Sweep(Section):
    """Many runs of this recipe, called cells, which differ in a few fields. They share every stage that does not depend
    on those fields. Each cell is an ordinary run."""

    over: dict[str, _Values] = Field(default={})
    """A grid: for each field, by its dotted path such as `pretrain.optimizer.matrix_lr`, the list of its values. Every
    combination is a cell. A path may also name a variable, as in `vars.NAME`."""
    zip: dict[str, _Values] = Field(default={})
    """Fields that change together: the first cell has the first value of each list, and so on. With `over`, every such
    row is combined with every cell of the grid."""
    seeds: Annotated[int, Field(ge=1, le=1000)] | Annotated[tuple[_Seed, ...], Field(min_length=1)] | None = None
    """Repeat every cell with these seeds: a list, or how many to count up from `seed`. Default: `seed` only."""
    where: NonEmptyText | Annotated[tuple[NonEmptyText, ...], Field(min_length=1)] | None = None
    """Conditions that a combination must meet, others are skipped, such as `model.n_layer <= 4`. A condition compares a
    field of the sweep with a value or with another field; several may be joined by `or`."""
    until: NonEmptyText | None = None
    """The last stage that the cells run. Default: all stages of the recipe."""
    rank_by: Annotated[dict[str, Literal["min", "max"]], Field(min_length=1, max_length=1)] | None = None
    """The result that decides which cell is best, and whether small or large values are: `base_eval.bpb: min`. Cells
    that differ only in their seed are ranked by their mean."""
    search: Search | None = None
    """Search for good values, instead of `over` and `zip`."""
    parallel: Annotated[int, Field(ge=1, le=MAX_PARALLEL)] | Literal["auto"] | None = None
    """Number of cells to run at a time on this machine. NVIDIA GPUs share them evenly. `auto` is one for each GPU, or
    on a CPU as many as memory and cores allow. Default: 1."""
    hostfile: Annotated[NonEmptyText | None, LocalPath()] = None
    """File that lists the hosts to run cells on, in the format of `mlx.launch`, one entry for each cell at a time. The
    hosts must see the base folder and this recipe under the same paths."""
    fit: Literal["isoflop", "power", "none"] = "none"
    """Fit a scaling law to the results. `power` fits the loss as a function of parameters and tokens; `isoflop` fits a
    parabola to the cells of each number of training FLOPs."""

    @property
    def ranking(self) -> tuple[str, Literal["min", "max"]] | None:
        """The entry of `rank_by`: the result, and whether small or large values are best."""
        return next(iter((self.rank_by or {}).items()), None)


SWEPT_SECTIONS = ("over", "zip")
"""Fields of `sweep` that map a dotted path to a list of values."""
