"""The section of the stage that exports a model: `export`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nanochat.recipe.schema.field_types import InitFrom, Name
from nanochat.recipe.schema.section import Conflict, Section, StageSection

QuantizedBits = Literal[2, 3, 4, 5, 6, 8]
GroupSize = Literal[32, 64, 128]


class Quantize(Section):
    """How matrices and tables are rounded."""

    bits: QuantizedBits = 4
    """Bits per number."""
    group_size: GroupSize = 64
    """Numbers that share a scale and an offset."""


class MlxFormat(Section):
    """A folder for mlx-lm."""

    quantize: Quantize | None = None
    """Round the matrices and tables. Default: float32."""


class PlainFormat(Section):
    """A format without settings: `{}`."""


class ExportFormats(Section):
    """The formats to write, each into a folder of its name. Give at least one."""

    mlx: MlxFormat | None = None
    """A folder for mlx-lm."""
    hf: PlainFormat | None = None
    """A folder for transformers."""
    torch: PlainFormat | None = None
    """Weights, configuration and tokenizer for PyTorch nanochat."""

    @classmethod
    def conflict(cls, given: Collection[str]) -> Conflict | None:
        """Return a problem if no format is given."""
        return None if given else Conflict("missing-field", "give at least one of `mlx`, `hf` and `torch`", None)


class ExportCheck(Section):
    """Run the exported models in mlx-lm and transformers, which needs `nanochat-run[export]`. Folders of the format
    `torch` are not run."""

    prompts: tuple[str, ...] = ()
    """Questions for a chat model, or texts for a base model to continue. The greedy answer must be that of this model;
    otherwise the command exits with code 5. The answers of a quantized model are only shown."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 32
    """Maximum length of an answer, in tokens."""
    suites: tuple[Name, ...] = ()
    """Suites of `chat_eval` whose scores are measured again with each exported model, greedily and without the
    calculator, for the model card. Only tasks whose answers are generated and graded as text."""


class Export(StageSection):
    """The export stage writes the model as folders for other programs."""

    upstream: ClassVar = ("rl", "sft", "pretrain")

    formats: ExportFormats
    """What to write."""
    check: ExportCheck | None = None
    """Run what was written. Default: do not."""
    init_from: InitFrom | None = None
    """Export these weights instead of this recipe's `sft` or `pretrain`: a run, a stage folder or a checkpoint
    folder."""
