"""The sections `run` and `tracking`: how to execute the stages and where to log. They never change what is computed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nanochat.recipe.schema.evaluation_sections import AnyChatSuite, BaseSuite
from nanochat.recipe.schema.field_types import Bytes, Count, LocalPath, Name, NonEmptyText, Positive
from nanochat.recipe.schema.section import Section


class Checkpoints(Section):
    """When to save checkpoints. Never changes what is computed."""

    every_steps: Count | None = None
    """Number of steps between two checkpoints. Default: save by time only."""
    every_minutes: Positive | None = 10.0
    """Number of minutes between two checkpoints. `null` for no saving by time."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Number of most recent checkpoints to keep while a stage is running."""
    keep_when_done: bool = False
    """Keep the checkpoints when the stage has finished. By default they are deleted then, because the stage's output
    contains the model."""


class Evaluate(Section):
    """Suites that measure the model while it trains. Never changes what is computed: the weights have the same bits
    with and without them. The plan says which share of the time they take. A cached stage is not measured again; with
    `--force STAGE` it is."""

    suites: dict[Name, BaseSuite] = Field(default={})
    """Evaluations during `pretrain` and `sft`: for each, a name of your own and the fields of a suite of
    `base_eval`."""
    chat_suites: dict[Name, AnyChatSuite] = Field(default={})
    """Evaluations during `sft`: for each, a name of your own and the fields of a suite of `chat_eval`."""
    every_steps: Count = 500
    """Number of steps between two evaluations. The last step is evaluated, too."""


class Monitor(Section):
    """What to record during training. Changes what is computed only with `hand_on: best`, where the validations decide
    which model is passed on."""

    log_every_steps: Count = 1
    """Number of steps between two records of loss and speed."""
    validate_every_steps: Count | None = 250
    """Number of steps between two validations, which measure the loss and bits per byte on held-out documents, in `sft`
    on held-out chats. `null` for never."""
    validate_tokens: Count = 131_072
    """Maximum number of tokens per validation. Whole conversations in `sft`."""
    sample_every_steps: Count | None = None
    """Number of steps between two sets of generated samples. Default: never."""
    prompts: tuple[str, ...] = ()
    """Prompts of the samples."""
    evaluate: Evaluate = Evaluate()
    """Suites to run during training. Their scores are logged as `eval/NAME`."""


class Data(Section):
    """How data are stored between runs. Never changes what is computed."""

    token_cache: bool = False
    """Tokenize each pretraining source once into files that later runs share. By default text is tokenized during
    training and not stored."""
    refresh_lock: bool = False
    """Ask the hub again which commits the branches and tags of `sources` name, and write them to the lock file next to
    the recipe."""


class Limits(Section):
    """Limits above which a run is refused before it starts."""

    memory: Bytes | None = None
    """Maximum memory that the plan may need, in bytes. Default: the memory of the device."""
    minutes: Positive | None = None
    """Maximum estimated time of the run, in minutes."""


class Distributed(Section):
    """Training on several processes, each of which computes a part of every step. Changes only the order in which
    numbers are added."""

    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of processes that train together, one per GPU or machine. Each computes its share of the rows of a
    step."""
    backend: Literal["auto", "ring", "nccl", "jaccl", "mpi"] = "auto"
    """How the processes communicate. `auto` is the backend of the hostfile if there is one, else `nccl` on CUDA and
    `ring` elsewhere."""
    hostfile: Annotated[NonEmptyText | None, LocalPath()] = None
    """File that lists the hosts to start the processes on, one entry per process, in the format of `mlx.launch`.
    Default: all processes run on this machine."""


class Run(Section):
    """How to execute the stages. Never changes what is computed and is never part of a fingerprint, except the
    validations of `monitor` with `hand_on: best`."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute. `auto` is the GPU if MLX has one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the computation. `auto` is bfloat16 on a GPU and float32 on a CPU."""
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of rows per forward pass. `auto` is the largest number that fits into memory by estimate. If memory runs
    out nevertheless, the stage continues with half as many. A step has the same tokens whatever the number of rows."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass, which takes less memory and about a third more time."""
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    """Number of BLAS threads. Applies on a CPU."""
    checkpoint: Checkpoints = Checkpoints()
    """When to save checkpoints."""
    monitor: Monitor = Monitor()
    """What to record during training."""
    data: Data = Data()
    """How data are stored between runs."""
    distributed: Distributed = Distributed()
    """Number of processes to train on. Evaluations run in one process."""
    limits: Limits = Limits()
    """Limits above which the run is refused."""
    offline: bool = False
    """Do not use the network."""
    accept_unisolated_programs: bool = False
    """Run programs that the model writes (`humaneval`) even if this machine cannot isolate them. They can then read,
    change and delete files and use the network as you can. By default such a run is refused."""


class Tracking(Section):
    """Where to log results. Local files are written in any case."""

    kind: Literal["mlflow", "none"] = "mlflow"
    """`mlflow` logs to MLflow, and `none` writes local files only."""
    uri: str | None = None
    """MLflow tracking URI. Default: the environment variable MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the
    working directory."""
    experiment: Annotated[str, Field(min_length=1)] | None = None
    """Name of the MLflow experiment. Default: the environment variable MLFLOW_EXPERIMENT_NAME, else `nanochat`."""
    tags: dict[str, str] = Field(default={})
    """Tags of the recipe's MLflow run. A name consists of letters, digits, spaces and `_-.:/`, and does not begin with
    `mlflow.`."""
    register: NonEmptyText | None = None
    """Name of a registered model of MLflow. The run's last model becomes a version of it. Its tags say the run, the
    commit, a digest of the recipe, the fingerprint of the stage, and the results that `expect` names. The version gets
    the alias `best` if `expect` has conditions and all of them hold. The version that has the alias keeps it if it is
    better by every result that both recipes name."""
    upload_weights: Literal["registered", "all", "none"] = "registered"
    """Models whose files are uploaded to MLflow. The others are a reference to the stage's folder, which takes a few KB
    and can be loaded where that folder is. A store on the same disk shares uploaded files with the stage and needs no
    more space; a server needs as much as the model has."""
    system_metrics_every_seconds: Annotated[float, Field(ge=0.1, le=3600)] | None = 10.0
    """Number of seconds between two measurements of the CPU, memory, disk, network and GPUs, which MLflow shows as
    system metrics of each stage. `null` for never."""
