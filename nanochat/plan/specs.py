"""The specification of each stage: every number that its process needs. Serialised to JSON for the child process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from nanochat.data.sources import SourceSpec
from nanochat.export.model_config import Format
from nanochat.model.config import GPTConfig
from nanochat.optim.groups import OptimizerConfig
from nanochat.optim.schedules import ScheduleConfig
from nanochat.storage.integrity import FileDigest
from nanochat.tasks.custom.python_files import PythonFile
from nanochat.tasks.table import TASKS, ChoiceTask, GradeRule

StageName = Literal["tokenizer", "pretrain", "base_eval", "sft", "rl", "chat_eval", "export"]


class Spec(BaseModel):
    """Base of the stage specifications: frozen, JSON in and out."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TokenizerSpec(Spec):
    """Train a tokenizer."""

    stage: Literal["tokenizer"] = "tokenizer"
    source: SourceSpec
    vocab_size: int
    max_chars: int
    max_document_chars: int
    seed: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (WeightedSource(source=self.source, weight=1),)


class WeightedSource(Spec):
    """One source of a pretraining mixture."""

    source: SourceSpec
    weight: float


HandOn = Literal["last", "best"]
"""Which model a training stage passes on: that of the last step, or the one with the lowest validation loss."""


class PretrainSpec(Spec):
    """Pretrain a model from scratch or from `init_from`."""

    stage: Literal["pretrain"] = "pretrain"
    model: GPTConfig
    data: tuple[WeightedSource, ...]
    steps: int | None
    """None if `minutes` is set."""
    minutes: float | None = None
    """Wall time of training steps. The units of `schedule` are then parts of it, see `optim.schedules`."""
    tokens_per_step: int
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    weight_decay: float
    buffer_documents: int
    long_documents: Literal["keep", "crop"]
    hand_on: HandOn = "last"
    init_from: str | None
    seed: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return self.data


class BpbSuiteSpec(Spec):
    """Bits per byte of held-out documents."""

    task: Literal["bpb"] = "bpb"
    source: SourceSpec
    split: Literal["train", "validation"]
    tokens: int


class ChoiceSuiteSpec(Spec):
    """Multiple choice by log-probability."""

    task: ChoiceTask
    source: SourceSpec
    split: str | None
    max_problems: int | None
    num_fewshot: int


class CoreSuiteSpec(Spec):
    """The DCLM bundle."""

    task: Literal["core"] = "core"
    source: SourceSpec
    max_problems: int | None


class QuestionsSuiteSpec(Spec):
    """The user's own questions, with choices that are compared by log-probability."""

    task: Literal["questions"] = "questions"
    source: SourceSpec
    split: str
    max_problems: int | None
    num_fewshot: int
    fewshot_split: str
    system: str


class LmEvalSuiteSpec(Spec):
    """A task of lm-evaluation-harness. The library reads its data."""

    task: Literal["lm_eval"] = "lm_eval"
    name: str
    """A name of the library, or the absolute path of a YAML file."""
    files: str
    """A digest of the YAML file and of the files that it names; empty for a name of the library."""
    max_problems: int | None
    num_fewshot: int | None
    metric: str | None


class SftItem(Spec):
    """One task of the SFT mixture."""

    name: str
    task: str
    source: SourceSpec
    split: str
    max_examples: int | None
    repeat: int
    weight: float | None = None
    validation_split: str | None = None
    """The split whose examples are held out."""
    validation_frac: float | None = None
    """The share of the examples that is held out, by a hash of each."""
    is_held_out: bool = False
    """Whether all examples are held out, and none is trained on."""

    @property
    def is_validated(self) -> bool:
        """Whether some of the task's examples are held out for validation."""
        return self.validation_split is not None or self.validation_frac is not None

    @property
    def held_out_split(self) -> SftItem | None:
        """The same task on the split that is held out; None without such a split."""
        if self.validation_split is None:
            return None
        held_out = {"max_examples": None, "validation_split": None, "is_held_out": True}
        return self.model_copy(update={"split": self.validation_split, **held_out})


class ChatSuiteSpec(Spec):
    """One task of the chat evaluation."""

    task: str
    source: SourceSpec
    split: str
    max_problems: int | None
    num_samples: int
    max_tokens: int
    temperature: float
    top_k: int | None

    @property
    def runs_programs(self) -> bool:
        """Whether grading runs programs of the model or of the user. So in the other specifications."""
        return TASKS[self.task].runs_programs


class ChatQuestionsSpec(QuestionsSuiteSpec):
    """The user's own questions, whose answers are generated and graded."""

    grade: GradeRule
    program: PythonFile | None
    num_samples: int
    max_tokens: int
    temperature: float
    top_k: int | None

    @property
    def runs_programs(self) -> bool:
        return self.program is not None


class PythonSuiteSpec(Spec):
    """A task that a class of the user's asks and grades. It reads no source."""

    task: Literal["python"] = "python"
    file: PythonFile
    max_problems: int | None
    num_samples: int
    max_tokens: int
    temperature: float
    top_k: int | None

    @property
    def runs_programs(self) -> bool:
        return True


Input = (
    WeightedSource | BpbSuiteSpec | ChoiceSuiteSpec | CoreSuiteSpec | QuestionsSuiteSpec | SftItem | ChatSuiteSpec
    | ChatQuestionsSpec
)  # fmt: skip
"""One thing that a stage reads: a source, and what is read from it."""
BaseSuiteSpec = Annotated[
    BpbSuiteSpec | ChoiceSuiteSpec | CoreSuiteSpec | QuestionsSuiteSpec | LmEvalSuiteSpec, Field(discriminator="task")
]
AnyChatSuiteSpec = ChatQuestionsSpec | PythonSuiteSpec | ChatSuiteSpec


class BaseEvalSpec(Spec):
    """Evaluate a base model."""

    stage: Literal["base_eval"] = "base_eval"
    suites: dict[str, BaseSuiteSpec]
    samples: tuple[str, ...]
    sample_tokens: int
    init_from: str | None
    seed: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(suite for suite in self.suites.values() if not isinstance(suite, LmEvalSuiteSpec))


class SftSpec(Spec):
    """Fine-tune on conversations. Exactly one of `steps`, `tokens`, `epochs`, `minutes` is set."""

    stage: Literal["sft"] = "sft"
    data: tuple[SftItem, ...]
    steps: int | None
    tokens: int | None
    epochs: float | None
    minutes: float | None = None
    sequence_len: int | None
    tokens_per_step: int
    optimizer: OptimizerConfig
    constant_frac: float
    final_frac: float
    buffer_conversations: int
    hand_on: HandOn = "last"
    init_from: str | None
    seed: int

    @property
    def is_validated(self) -> bool:
        """Whether any chats are held out for validation."""
        return any(item.is_validated for item in self.data)

    @property
    def last_step(self) -> int | None:
        """Optimizer steps in all; None if the data or the time decide. A horizon in tokens is rounded to steps."""
        if self.steps is not None:
            return self.steps
        return None if self.tokens is None else max(1, round(self.tokens / self.tokens_per_step))

    @property
    def inputs(self) -> tuple[Input, ...]:
        held_out = (item.held_out_split for item in self.data)
        return (*self.data, *(item for item in held_out if item is not None))


class RewardSpec(Spec):
    """The terms of a reward besides the grade."""

    length: float = 0.0
    form: str | None = None
    form_reward: float = 0.0


class RlItem(Spec):
    """A task to practise on. How its suite generates is not used."""

    suite: AnyChatSuiteSpec
    weight: float | None


class RlSpec(Spec):
    """Train on the model's own answers. Exactly one of `steps` and `epochs` is set."""

    stage: Literal["rl"] = "rl"
    data: dict[str, RlItem]
    held_out: dict[str, AnyChatSuiteSpec]
    steps: int | None
    epochs: float | None
    prompts_per_step: int
    samples_per_prompt: int
    max_tokens: int
    temperature: float
    top_k: int | None
    centre: Literal["group", "none"]
    scale: Literal["none", "std"]
    reward: RewardSpec
    clip: float | None
    kl: float
    updates_per_step: int
    optimizer: OptimizerConfig
    constant_frac: float
    final_frac: float
    init_from: str | None
    seed: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(suite for suite in self.suites.values() if not isinstance(suite, PythonSuiteSpec))

    @property
    def suites(self) -> dict[tuple[str, str], AnyChatSuiteSpec]:
        """What is practised and what is held out, by field and name."""
        held_out = {("held_out", name): suite for name, suite in self.held_out.items()}
        return {**{("data", name): item.suite for name, item in self.data.items()}, **held_out}

    @property
    def answers_per_step(self) -> int:
        """Answers that all processes sample for a step."""
        return self.prompts_per_step * self.samples_per_prompt


class ChatEvalSpec(Spec):
    """Evaluate a chat model."""

    stage: Literal["chat_eval"] = "chat_eval"
    suites: dict[str, AnyChatSuiteSpec]
    init_from: str | None
    seed: int

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(suite for suite in self.suites.values() if not isinstance(suite, PythonSuiteSpec))


class ExportSpec(Spec):
    """Write a model for other programs, and try it out."""

    stage: Literal["export"] = "export"
    formats: tuple[Format, ...]
    bits: int | None
    """Bits per number in the format `mlx`. None if it is not quantized."""
    group_size: int | None
    prompts: tuple[str, ...]
    max_tokens: int
    suites: dict[str, ChatSuiteSpec | ChatQuestionsSpec]
    is_chat: bool
    """Whether the prompts are questions, and not texts to continue."""
    init_from: str | None
    seed: int

    @property
    def is_checked(self) -> bool:
        """Whether the exported models are run."""
        return bool(self.prompts or self.suites)

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(self.suites.values())


StageSpec = Annotated[
    TokenizerSpec | PretrainSpec | BaseEvalSpec | SftSpec | RlSpec | ChatEvalSpec | ExportSpec,
    Field(discriminator="stage"),
]


def stage_sources(spec: StageSpec) -> tuple[SourceSpec, ...]:
    """Return the sources that a stage reads, each once, sorted by name."""
    return sources_of(spec.inputs)


def sources_of(inputs: Iterable[Input]) -> tuple[SourceSpec, ...]:
    """Return the sources of some inputs, each once, sorted by name."""
    by_name = {item.source.name: item.source for item in inputs}
    return tuple(by_name[name] for name in sorted(by_name))


class ExecutionSpec(Spec):
    """How to execute a stage; never part of a fingerprint."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    micro_batch_size: int | None = None
    batch_halvings: int = 0
    """How often the automatic batch of this stage is halved, because memory ran out."""
    activation_checkpointing: bool = False
    threads: int = 1
    memory_limit_bytes: int | None = None
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float | None = None
    checkpoint_keep: int = 2
    checkpoint_keep_when_done: bool = False
    log_every_steps: int = 1
    validate_every_steps: int | None = None
    validate_tokens: int = 131_072
    sample_every_steps: int | None = None
    prompts: tuple[str, ...] = ()
    suites: dict[str, BaseSuiteSpec] = {}
    """Suites to run while this stage trains."""
    chat_suites: dict[str, AnyChatSuiteSpec] = {}
    """The same, but suites of chats. No name is in both."""
    suites_every_steps: int = 500
    token_cache: bool = False
    offline: bool = False
    accept_unisolated_programs: bool = False
    processes: int = 1
    """Number of processes that train together. Evaluations run in one."""
    collectives: Literal["auto", "ring", "nccl", "jaccl", "mpi"] = "auto"
    hostfile: str | None = None
    """Absolute path."""

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What is read to monitor the stage, besides what the stage itself reads."""
        chats = (suite for suite in self.chat_suites.values() if not isinstance(suite, PythonSuiteSpec))
        suites = (suite for suite in self.suites.values() if not isinstance(suite, LmEvalSuiteSpec))
        return (*suites, *chats)

    @property
    def has_suites(self) -> bool:
        """Whether suites run while the stage trains."""
        return bool(self.suites or self.chat_suites)

    @property
    def processes_here(self) -> int:
        """Processes that share this machine's memory: all of them, or one if a hostfile distributes them."""
        return self.processes if self.hostfile is None else 1


class Job(Spec):
    """Everything that a child process needs to run one stage. It is read from `job.json` in the stage's folder."""

    spec: StageSpec
    execution: ExecutionSpec
    stage_dir: str
    upstream: dict[StageName, str]
    """The folder `out/` of each stage that this one reads."""
    inputs: dict[str, FileDigest] = {}
    """What the files of these folders, and of the model to start from, must be like when they are loaded, by path."""
    origin: str = ""
    """Where the model comes from, as Markdown for the card of an exported model."""

    @property
    def data(self) -> tuple[Input, ...]:
        """Everything that the stage reads from sources."""
        return (*self.spec.inputs, *self.execution.inputs)
