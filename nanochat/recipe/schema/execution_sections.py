"""The recipe sections `run` and `tracking`: how to execute and where to log, never what is computed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nanochat.recipe.schema.section import Section
from nanochat.recipe.schema.values import Bytes, Count, LocalPath, NonEmptyText, Positive


class Checkpoints(Section):
    """When checkpoints are saved; never changes what is computed."""

    every_steps: Count | None = None
    """Save every so many steps."""
    every_minutes: Positive | None = 10.0
    """Save when so many minutes have passed since the last save."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Newest checkpoints kept while a stage runs."""
    keep_when_done: bool = False
    """Keep them when the stage is done. Default: deleted then, for the stage's output holds the model."""


class Monitor(Section):
    """What is looked at while training; never changes what is computed."""

    log_every_steps: Count = 1
    """Record loss and rates every so many steps."""
    validate_every_steps: Count | None = 250
    """Measure validation bpb every so many steps; null for never."""
    validate_tokens: Count = 131_072
    """Tokens per validation, at most."""
    sample_every_steps: Count | None = None
    """Write samples every so many steps; null for never."""
    prompts: tuple[str, ...] = ()
    """Prompts of those samples."""


class Data(Section):
    """How data are kept between runs; never changes what is computed."""

    token_cache: bool = False
    """Tokenize pretraining sources whole, once, into files that later runs share. Default: on the fly, kept nowhere."""
    refresh_lock: bool = False
    """Ask the hub anew what branches and tags name; the answer goes into the lock file beside the recipe."""


class Limits(Section):
    """Where a run must stop before it starts."""

    memory: Bytes | None = None
    """Refuse a plan that needs more memory. Default: the device's."""
    minutes: Positive | None = None
    """Refuse a plan whose estimated time is longer."""


class Distributed(Section):
    """Training on several processes that share each step; never changes what is computed but the order of sums."""

    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that train together, one per GPU or machine; each takes its share of a step's rows."""
    backend: Literal["auto", "ring", "nccl", "jaccl", "mpi"] = "auto"
    """How they talk. `auto` is what the hostfile says, else `nccl` on CUDA and `ring` elsewhere."""
    hostfile: Annotated[NonEmptyText | None, LocalPath()] = None
    """Hosts to start them on, one entry per process, in the form of `mlx.launch`. Default: all on this machine."""


class Run(Section):
    """How to execute; never changes what is computed and is never part of a fingerprint."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; `auto` is the GPU where MLX has one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows per forward pass; `auto` is the largest that fits."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: less memory, about a third more time."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """BLAS threads of a CPU run."""
    checkpoint: Checkpoints = Checkpoints()
    """When to save."""
    monitor: Monitor = Monitor()
    """What to record while training."""
    data: Data = Data()
    """How data are kept."""
    distributed: Distributed = Distributed()
    """On how many processes to train; evaluations run in one."""
    limits: Limits = Limits()
    """What a plan may need at most."""
    offline: bool = False
    """Never touch the network."""


class Tracking(Section):
    """Where results are logged; local files are written in any case."""

    kind: Literal["mlflow", "none"] = "mlflow"
    """`mlflow`, or `none` for local files alone."""
    uri: str | None = None
    """MLflow tracking URI. Default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory."""
    experiment: Annotated[str, Field(min_length=1)] = "nanochat"
    """MLflow experiment the run belongs to."""
    tags: dict[str, str] = Field(default={})
    """Tags set on the parent run."""
