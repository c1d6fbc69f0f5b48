"""The sections of the stages that train: `tokenizer`, `model`, `pretrain` and `sft`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from nanochat.recipe.schema.field_types import Count, Fraction, InitFrom, Name, NonNegative, Positive, Scaled, SplitName
from nanochat.recipe.schema.section import Section, StageSection
from nanochat.tasks.table import SftTask

MAX_REPEAT = 1000
"""The largest `repeat` of a task of `sft`."""


class Tokenizer(StageSection):
    """The tokenizer stage trains a byte-pair encoding."""

    source: str
    """Name of the source to train on. Only its training documents are read."""
    vocab_size: Annotated[int, Scaled(300, 1_000_000)] = 32768
    """Number of tokens, including the 256 bytes and the 9 special tokens."""
    max_chars: Count = 2_000_000_000
    """Maximum number of characters to train on."""
    max_document_chars: Count = 10_000
    """Maximum number of characters to read of each document."""


class Model(Section):
    """The shape of the model. Give `depth` or `n_layer`; widths and heads that are not given follow from it."""

    architecture: Literal["seed", "current", "portable"] = "seed"
    """`seed` is the architecture of NanoChat MLX, and `current` is the architecture of nanochat as of 2026-07.
    `portable` is a simpler one, which mlx-lm and transformers can load without code of ours: `seed` without value
    embeddings, residual scalars and short windows."""
    depth: Annotated[int, Field(ge=1, le=200)] | None = None
    """Number of layers. Unless given, `n_embd` is 64 x depth, rounded up to a multiple of 128, and each head has 128
    dimensions."""
    n_layer: Annotated[int, Field(ge=1, le=200)] | None = None
    """Number of transformer blocks. Default: `depth`."""
    n_embd: Annotated[int, Field(ge=8, le=16384)] | None = None
    """Width of the residual stream. Default: see `depth`."""
    n_head: Annotated[int, Field(ge=1, le=256)] | None = None
    """Number of query heads. Must divide `n_embd`. Default: see `depth`."""
    n_kv_head: Annotated[int, Field(ge=1, le=256)] | None = None
    """Number of key/value heads. Must divide `n_head`. Default: `n_head`."""
    sequence_len: Annotated[int, Scaled(8, 1_048_576)] = 2048
    """Context length, in tokens."""
    window_pattern: Annotated[str, Field(pattern="^[SL]+$", max_length=200, examples=["SSSL"])] | None = None
    """Attention window of each layer, as a pattern that is repeated: `S` is a short window, and `L` is the whole
    context. The last layer always has the whole context. Default: `SSSL`; for `portable`, which has no short windows,
    `L`."""


class Horizon(Section):
    """How long to train. Give exactly one of the fields."""

    exactly_one = ("steps", "tokens", "ratio", "flops", "epochs", "minutes")

    steps: Count | None = None
    """Number of optimizer steps."""
    tokens: Count | None = None
    """Number of training tokens."""
    ratio: Positive | None = None
    """Number of training tokens per scaling parameter (the matrices of the blocks and `lm_head`)."""
    flops: Positive | None = None
    """Total training FLOPs."""
    epochs: Positive | None = None
    """Number of passes over the training data. Allowed only in `sft`, because the size of the pretraining data is
    unknown before it is tokenized."""
    minutes: Positive | None = None
    """Minutes of training steps, for contests with equal time. Starting, validating, sampling and saving do not count,
    nor does what the first steps need for compiling. The learning rate follows the share of the time that is used. The
    result depends on the speed of the machine, so it is marked as not reproducible."""


class Optimizer(Section):
    """The optimizer: Muon for matrices, AdamW for all other parameters. Values that are not given come from
    `variant`."""

    variant: Literal["plain", "current"] = "plain"
    """`plain` has the optimizer and learning rates of NanoChat MLX, and `current` has those of nanochat as of
    2026-07."""
    lr_scale: Positive = 1.0
    """Factor on every learning rate."""
    matrix_lr: NonNegative | None = None
    """Learning rate of the matrices inside the blocks (Muon)."""
    embedding_lr: NonNegative | None = None
    """Learning rate of the token embedding (AdamW), before scaling by width."""
    value_embedding_lr: NonNegative | None = None
    """Learning rate of the value embeddings (AdamW), before scaling by width."""
    unembedding_lr: NonNegative | None = None
    """Learning rate of `lm_head` (AdamW), before scaling by width."""
    resid_lr: NonNegative | None = None
    """Learning rate of the factors on the residual stream, one per block (AdamW)."""
    x0_lr: NonNegative | None = None
    """Learning rate of the factors on the token embedding that is added in each block (AdamW)."""
    weight_decay: NonNegative | None = None
    """Largest value of Muon's cautious weight decay. Default: 0.1 (`plain`), or what a scaling law derives from the
    batch and the number of training tokens (`current`): the shorter the training, the larger. The plan shows it."""


class Schedule(Section):
    """The learning rate over steps: a linear warm-up, a constant part, and a warm-down. Defaults depend on the
    optimizer variant."""

    kind: Literal["trapezoid", "cosine", "constant"] | None = None
    """Shape of the warm-down: `trapezoid` is linear, `cosine` is half a cosine, and `constant` has no warm-down."""
    warmup_steps: Annotated[int, Scaled(0)] | None = None
    """Number of steps of linear warm-up from 0, also with a horizon in minutes."""
    warmdown_frac: Fraction | None = None
    """Share of all steps that belongs to the warm-down. With a horizon in minutes, share of the time."""
    final_frac: Fraction | None = None
    """Learning rate of the last step, as a share of the peak."""


class SourceWeight(Section):
    """A source in the pretraining mixture."""

    weight: Positive = 1.0
    """How often documents are drawn from this source, relative to the weights of the other sources."""


HandOn = Literal["last", "best"]


class Pretrain(StageSection):
    """The pretrain stage trains the model to predict the next token, on packed documents."""

    upstream: ClassVar = ("tokenizer",)
    metrics: ClassVar = ("bpb", "cropped_frac", "loss", "val_loss")

    data: Annotated[dict[str, SourceWeight], Field(min_length=1)]
    """The mixture: for each source, by its name in `sources`, the weight of the source."""
    horizon: Horizon = Horizon(ratio=12.0)
    """How long to train. Default: 12 tokens per scaling parameter."""
    tokens_per_step: Count | Literal["auto"] = "auto"
    """Number of tokens per optimizer step, summed over all devices. `auto` computes it from the size of the model and
    the horizon by a power law."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and learning rates."""
    schedule: Schedule = Schedule()
    """Learning rate over steps."""
    buffer_documents: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Number of documents that the best-fit packer can choose from when it fills a row."""
    long_documents: Literal["keep", "crop"] = "keep"
    """What happens to the rest of a document that is cut because nothing else fits in a row. `keep` trains on it as a
    document of its own, so that an epoch has all the text. `crop` throws it away; this suits people who have more text
    than they can train on."""
    hand_on: HandOn = "last"
    """Which model later stages start from. `last` is that of the last step. `best` is the one with the lowest
    validation loss of all steps that were validated, and the first of them if several are equal. With `best`, the
    result depends on `run.monitor.validate_every_steps` and `validate_tokens`, so they enter the fingerprint."""
    init_from: InitFrom | None = None
    """Start from existing weights instead of random ones: a run, a stage folder or a checkpoint folder."""


class SftValidation(Section):
    """Which conversations of a task are held out for validation. Give exactly one of the fields. A conversation that
    equals a held-out one is not trained on either, whichever task of the mixture it belongs to."""

    exactly_one = ("split", "hash_frac")

    split: SplitName | None = None
    """Split of the source that is held out, or some of its rows, such as `test` or `train[-200:]`."""
    hash_frac: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the task's conversations to hold out. A hash of the content of each conversation decides."""


class SftData(Section):
    """A task in the SFT mixture."""

    task: SftTask
    """What the rows of the source are, and how they become conversations. `conversations` reads chats as they are."""
    source: str
    """Name of the source to read."""
    split: SplitName = "train"
    """Split of the source to read, or some of its rows, such as `train[:500]` or `train[:-50]`. If the names of the
    source's files and folders contain no split, all files belong to every split."""
    max_examples: Count | None = None
    """Use only the first examples, up to this number. Tasks that generate their examples generate this number."""
    repeat: Annotated[int, Field(ge=1, le=MAX_REPEAT)] = 1
    """How often each example of the task is in the mixture."""
    weight: Positive | None = None
    """Share of the mixture that comes from this task, relative to the weights of the other tasks. Give either all tasks
    a weight or none. With weights, the mixture is as large as it can be while it keeps these shares and holds no
    example more than `repeat` times."""
    validation: SftValidation | None = None
    """Which conversations are held out, to measure the loss and the bits per byte of their answers every
    `run.monitor.validate_every_steps` steps and at the end. Default: none."""


class SftSchedule(Section):
    """The learning rate over progress, which is the share of rows that have been used: a constant part, then a linear
    warm-down."""

    constant_frac: Fraction | None = None
    """Share of progress with the full learning rate. Default: 0.8, or 0.5 with the optimizer variant `current`."""
    final_frac: Fraction = 0.0
    """Last learning rate, as a share of the peak."""


class Sft(StageSection):
    """The sft stage fine-tunes the model on conversations. Only the tokens of the assistant count in the loss."""

    upstream: ClassVar = ("pretrain",)
    metrics: ClassVar = ("bpb", "loss", "val_loss")

    data: Annotated[dict[Name, SftData], Field(min_length=1)]
    """The mixture: for each task, a name of your own and the fields of the task."""
    horizon: Horizon = Horizon(epochs=1.0)
    """How long to train. Default: one epoch."""
    sequence_len: Annotated[int, Scaled(8)] | None = None
    """Length of a row, in tokens. Default: that of the model."""
    tokens_per_step: Count | None = None
    """Number of tokens per optimizer step. Default: that of `pretrain`."""
    lr_scale: Positive | None = None
    """Factor on the learning rates of `pretrain`. Default: 1, or 0.8 with the optimizer variant `current`."""
    schedule: SftSchedule = SftSchedule()
    """Learning rate over progress."""
    buffer_conversations: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Number of conversations that the best-fit packer can choose from when it fills a row."""
    hand_on: HandOn = "last"
    """Which model later stages start from, as in `pretrain`. `best` needs a task with `validation`."""
    init_from: InitFrom | None = None
    """Start from these weights instead of this recipe's `pretrain`: a run, a stage folder or a checkpoint folder."""
