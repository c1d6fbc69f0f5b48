"""The recipe sections that train: `tokenizer`, `model`, `pretrain` and `sft`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nanochat.recipe.schema.section import Section, StageSection
from nanochat.recipe.schema.values import Count, Fraction, InitFrom, Name, NonNegative, Positive, Scaled, SplitName
from nanochat.tasks.table import SftTask


class Tokenizer(StageSection):
    """The tokenizer stage: byte-pair encoding trained on a source."""

    source: str
    """Name of the source to train on (its training documents only)."""
    vocab_size: Annotated[int, Scaled(300, 1_000_000)] = 32768
    """Pieces in all, the 9 special tokens and 256 bytes included."""
    max_chars: Count = 2_000_000_000
    """Train on at most so many characters."""
    max_document_chars: Count = 10_000
    """Only the first so many characters of each document count."""


class Model(Section):
    """The model. `depth` is a dial that derives width and heads where they are not given."""

    architecture: Literal["seed", "current"] = "seed"
    """`seed` is the NanoChat MLX architecture, `current` that of nanochat as of 2026-07."""
    depth: Annotated[int, Field(ge=1, le=200)] | None = None
    """Number of layers; derives n_embd = 64 x depth rounded up to 128, and heads of 128."""
    n_layer: Annotated[int, Field(ge=1, le=200)] | None = None
    """Number of blocks."""
    n_embd: Annotated[int, Field(ge=8, le=16384)] | None = None
    """Width of the residual stream."""
    n_head: Annotated[int, Field(ge=1, le=256)] | None = None
    """Query heads; must divide n_embd."""
    n_kv_head: Annotated[int, Field(ge=1, le=256)] | None = None
    """Key/value heads; must divide n_head. Default: n_head."""
    sequence_len: Annotated[int, Scaled(8, 1_048_576)] = 2048
    """Context length T, in tokens."""
    window_pattern: Annotated[str, Field(pattern="^[SL]+$", max_length=200, examples=["SSSL"])] = "SSSL"
    """Attention window per layer, repeated: S short, L the whole context. The last layer is always L."""


class Horizon(Section):
    """How long to train: exactly one of the fields."""

    exactly_one = ("steps", "tokens", "ratio", "flops", "epochs")

    steps: Count | None = None
    """Optimizer steps."""
    tokens: Count | None = None
    """Training tokens."""
    ratio: Positive | None = None
    """Training tokens per scaling parameter (block matrices and lm_head)."""
    flops: Positive | None = None
    """Total training FLOPs."""
    epochs: Positive | None = None
    """Passes over the training data. Of `sft` only: pretraining's sources are of unknown size until tokenized."""


class Optimizer(Section):
    """Muon for matrices, AdamW for the rest. What is not given comes from the variant's table."""

    variant: Literal["plain", "current"] = "plain"
    """`plain` is the seed's optimizer and learning rates, `current` nanochat's as of 2026-07."""
    lr_scale: Positive = 1.0
    """Multiplies every learning rate."""
    matrix_lr: NonNegative | None = None
    """Muon, all matrices inside the blocks."""
    embedding_lr: NonNegative | None = None
    """AdamW, token embedding, before width scaling."""
    value_embedding_lr: NonNegative | None = None
    """AdamW, value embeddings, before width scaling."""
    unembedding_lr: NonNegative | None = None
    """AdamW, lm_head, before width scaling."""
    resid_lr: NonNegative | None = None
    """AdamW, residual multipliers."""
    x0_lr: NonNegative | None = None
    """AdamW, multipliers of the embedding fed to each block."""
    weight_decay: NonNegative | None = None
    """Muon's cautious weight decay at its largest."""


class Schedule(Section):
    """Learning rate over steps: linear warm-up, constant, then a warm-down. Defaults follow the optimizer variant."""

    kind: Literal["trapezoid", "cosine", "constant"] | None = None
    """Shape of the warm-down: `trapezoid` linear, `cosine` half a cosine, `constant` none."""
    warmup_steps: Annotated[int, Scaled(0)] | None = None
    """Steps of linear warm-up from 0."""
    warmdown_frac: Fraction | None = None
    """Share of the horizon spent on the warm-down."""
    final_frac: Fraction | None = None
    """Last learning rate as a share of the peak."""


class SourceWeight(Section):
    """One source of a pretraining mixture."""

    weight: Positive = 1.0
    """Share of documents drawn from this source, relative to the others."""


class Pretrain(StageSection):
    """The pretrain stage: next-token prediction on packed documents."""

    upstream: ClassVar = ("tokenizer",)
    metrics: ClassVar = ("bpb", "cropped_frac", "loss")

    data: Annotated[dict[str, SourceWeight], Field(min_length=1)]
    """Mixture: source name to weight."""
    horizon: Horizon = Horizon(ratio=12.0)
    """How long to train. Default: 12 tokens per scaling parameter."""
    tokens_per_step: Count | Literal["auto"] = "auto"
    """Tokens per optimizer step over all devices; `auto` follows the batch-size power law."""
    optimizer: Optimizer = Optimizer()
    """Learning rates and their rules."""
    schedule: Schedule = Schedule()
    """Learning rate over steps."""
    buffer_documents: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Documents the best-fit packer chooses from."""
    init_from: InitFrom | None = None
    """Start from these weights: a run, a stage folder or a checkpoint folder."""


class SftData(Section):
    """One task of the SFT mixture."""

    task: SftTask
    """What the rows are and how they are rendered; `conversations` reads chat data as it is."""
    source: str
    """Name of the source the task reads."""
    split: SplitName = "train"
    """Split of the source, where it has several, or rows of it, such as `train[:500]` or `train[:-50]`."""
    max_examples: Count | None = None
    """Use only the first so many examples (generated tasks: generate so many)."""
    repeat: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many times the task's examples are in the mixture: its epochs in each epoch of the whole."""
    weight: Positive | None = None
    """Share of the mixture's examples, relative to the other tasks; all tasks have one, or none has.

    The mixture is then as large as it can be with these shares and no example in it more than `repeat` times."""


class SftSchedule(Section):
    """Learning rate over progress (rows consumed / rows): constant, then linear to the final share."""

    constant_frac: Fraction | None = None
    """Share of progress at the full rate. Default: 0.8 (`current`: 0.5)."""
    final_frac: Fraction = 0.0
    """Last learning rate as a share of the peak."""


class Sft(StageSection):
    """The sft stage: supervised fine-tuning on rendered conversations, loss on the assistant's tokens only."""

    upstream: ClassVar = ("pretrain",)

    data: Annotated[dict[Name, SftData], Field(min_length=1)]
    """Mixture: a name of your own to a task."""
    horizon: Horizon = Horizon(epochs=1.0)
    """How long to train. Default: one epoch."""
    sequence_len: Annotated[int, Scaled(8)] | None = None
    """Row length in tokens. Default: the model's."""
    tokens_per_step: Count | None = None
    """Tokens per optimizer step. Default: pretraining's."""
    lr_scale: Positive | None = None
    """Multiplies pretraining's learning rates. Default: 1 (`current`: 0.8)."""
    schedule: SftSchedule = SftSchedule()
    """Learning rate over progress."""
    buffer_conversations: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Conversations the best-fit packer chooses from."""
    init_from: InitFrom | None = None
    """Start from these weights instead of this recipe's pretraining."""
