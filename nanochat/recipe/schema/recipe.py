"""The whole of a recipe, and its sources: frozen Pydantic models behind validation and the JSON Schema.

The sections stand in `training`, `evaluation` and `execution`, and are named here for those who read recipes.
Identity sections decide what is computed; `run` and `tracking` never do. Derived numbers are not here: see `plan`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from nanochat.recipe.schema.evaluation_sections import (
    BaseEval,
    BaseSuite,
    BpbSuite,
    ChatEval,
    ChatSuite,
    ChoiceSuite,
    CoreSuite,
)
from nanochat.recipe.schema.execution_sections import Checkpoints, Limits, Monitor, Run, Tracking
from nanochat.recipe.schema.section import Section, StageSection
from nanochat.recipe.schema.training_sections import (
    Horizon,
    Model,
    Optimizer,
    Pretrain,
    Schedule,
    Sft,
    SftData,
    SftSchedule,
    SourceWeight,
    Tokenizer,
)
from nanochat.recipe.schema.values import Condition, Count, LocalPath, Name, NonEmptyText

__all__ = [
    "STAGE_SECTIONS",
    "BaseEval",
    "BaseSuite",
    "BpbSuite",
    "ChatEval",
    "ChatSuite",
    "Checkpoints",
    "ChoiceSuite",
    "CoreSuite",
    "Horizon",
    "Limits",
    "Model",
    "Monitor",
    "Optimizer",
    "Pretrain",
    "Recipe",
    "Run",
    "Schedule",
    "Section",
    "Sft",
    "SftData",
    "SftSchedule",
    "Source",
    "SourceWeight",
    "StageSection",
    "Tokenizer",
    "Tracking",
    "Validation",
]


class Validation(Section):
    """Which documents are held out. A named shard, or a hash of each document; never "the last file"."""

    exactly_one = ("shard", "hash_frac")

    shard: Annotated[str, Field(min_length=1)] | None = None
    """File name of the shard that is held out whole, such as `shard_00004.parquet`."""
    hash_frac: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of documents held out by a hash of their content."""


class Source(Section):
    """Something outside the recipe: exactly one of `uri`, `path`, `builtin`."""

    exactly_one = ("uri", "path", "builtin")
    goes_with: ClassVar[Mapping[str, str]] = {"revision": "uri"}

    uri: (
        Annotated[str, Field(pattern=r"^hf://datasets/[^/]+/[^/]+(/.*)?$", examples=["hf://datasets/OWNER/NAME"])]
        | None
    ) = None
    """A data set on the hub: `hf://datasets/OWNER/NAME`, optionally with a folder or a glob of files."""
    revision: str | None = None
    """Branch, tag or commit of the hub data set."""
    path: Annotated[NonEmptyText | Annotated[tuple[NonEmptyText, ...], Field(min_length=1)] | None, LocalPath()] = None
    """Local files: a path, a glob, or a list of them, relative to the recipe (parquet, jsonl, txt)."""
    builtin: Literal["python-stdlib", "spelling"] | None = None
    """What ships with every installation: `python-stdlib` (documents), `spelling` (words to spell)."""
    column: str = "text"
    """Name of the column or key that holds a document's text."""
    max_files: Annotated[int, Field(ge=1)] | None = None
    """Use only the first so many files, in sorted order."""
    max_document_chars: Count | None = None
    """Longer documents are cut into pieces of at most so many characters, at line ends."""
    validation: Validation | None = None
    """Which documents are held out for validation. Default: 1 % by hash (`python-stdlib`: 2 %)."""


class Recipe(Section):
    """One run, from text to chat model. A missing stage section means that there is no such stage."""

    extends: NonEmptyText | tuple[NonEmptyText, ...] | None = None
    """Recipes this one is written over: a path or a list, relative to this file and inside the recipe folder.

    Maps merge, lists are replaced, `null` drops."""
    vars: dict[Name, str | int | float | bool] = Field(default={})
    """Values used elsewhere as `${vars.NAME}`."""
    nanochat: Literal[1]
    """Version of this schema."""
    name: Name
    """Name of the run."""
    description: str = ""
    """What the run is for, in a sentence or a paragraph of markdown."""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 42
    """Seed of everything random; each stage derives its own keys from it."""
    sources: dict[Name, Source] = Field(default={})
    """The only place that names anything outside: a name of your own to a source."""
    tokenizer: Tokenizer | None = None
    """Train a tokenizer."""
    model: Model | None = None
    """Shape of the model."""
    pretrain: Pretrain | None = None
    """Train the model on documents."""
    base_eval: BaseEval | None = None
    """Evaluate the pretrained model."""
    sft: Sft | None = None
    """Tune the model on conversations."""
    chat_eval: ChatEval | None = None
    """Evaluate the tuned model."""
    expect: dict[str, Condition] = Field(default={})
    """Conditions on results, such as `base_eval.bpb: "<= 1.6"`: the run exits 5 where one is not met."""
    run: Run = Run()
    """How to execute."""
    tracking: Tracking = Tracking()
    """Where results are logged."""


def _stage_sections() -> Iterator[tuple[str, type[StageSection]]]:
    for name, field in Recipe.model_fields.items():
        for kind in get_args(field.annotation):
            if isinstance(kind, type) and issubclass(kind, StageSection):
                yield name, kind


STAGE_SECTIONS = dict(_stage_sections())
"""The section of each stage by its name, in the order in which stages run."""
