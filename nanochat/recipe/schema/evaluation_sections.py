"""The sections of the stages that evaluate: `base_eval` and `chat_eval`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Discriminator, Field, Tag

from nanochat.recipe.schema.field_types import Count, InitFrom, LocalPath, Name, NonEmptyText, NonNegative, SplitName
from nanochat.recipe.schema.section import Section, StageSection
from nanochat.tasks.table import ChatTask, ChoiceTask, GradeRule

PythonFunction = Annotated[
    str, LocalPath(), Field(pattern=r"^.+\.py(:[A-Za-z_][A-Za-z0-9_]*)?$", examples=["grade.py:score"])
]
PythonClass = Annotated[
    str, LocalPath(), Field(pattern=r"^.+\.py:[A-Za-z_][A-Za-z0-9_]*$", examples=["my_tasks.py:MyTask"])
]


class BpbSuite(Section):
    """Bits per byte of the documents of a source."""

    task: Literal["bpb"]
    """`bpb`: bits per byte."""
    source: str | None = None
    """Name of the source. Default: the first source of `pretrain.data`."""
    split: Literal["train", "validation"] = "validation"
    """Which documents of the source: those held out for validation, or those used for training."""
    tokens: Count = 1_000_000
    """Maximum number of tokens to evaluate."""


class ChoiceSuite(Section):
    """Multiple-choice problems. The model's answer is the option with the highest log-probability."""

    task: ChoiceTask
    """Kind of problems."""
    source: str
    """Name of the source that holds the problems."""
    split: SplitName | None = None
    """Split of the source, or some of its rows, such as `train[-50:]`. Default: the task's usual evaluation split."""
    max_problems: Count | None = None
    """Maximum number of problems, chosen by a fixed shuffle. Default: all."""
    num_fewshot: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of solved examples in front of each question."""


class CoreSuite(Section):
    """The CORE metric: the mean of the centred accuracies over the tasks of a DCLM evaluation bundle."""

    task: Literal["core"]
    """`core`: the CORE metric."""
    source: str
    """Name of the source whose `path` is the folder of the bundle, or whose `uri` is the address of its archive."""
    max_problems: Count | None = None
    """Maximum number of problems per task. Default: all."""


class QuestionsSuite(Section):
    """Questions of your own. The model's answer is the choice with the highest log-probability, so every row has
    `choices`, of which exactly one is right."""

    task: Literal["questions"]
    """`questions`: rows with a question, its answer, and perhaps choices; the `map` of the source names other keys."""
    source: str
    """Name of the source that holds the questions."""
    split: SplitName = "test"
    """Split of the source, or some of its rows, such as `train[-50:]`. If the names of the source's files and folders
    contain no split, all files belong to every split."""
    max_problems: Count | None = None
    """Maximum number of questions, chosen by a fixed shuffle. Default: all."""
    num_fewshot: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of solved examples in front of each question."""
    fewshot_split: SplitName = "train"
    """Split of the source that solved examples come from. A question is never its own example."""
    system: str = ""
    """Instructions in front of everything else."""


class LmEvalSuite(Section):
    """A task of lm-evaluation-harness, which asks and grades while our engine scores. It needs
    `nanochat-run[lm-eval]`."""

    task: Literal["lm_eval"]
    """`lm_eval`: a task of lm-evaluation-harness."""
    name: Annotated[str, LocalPath(only_explicit=True), Field(min_length=1, examples=["hellaswag"])]
    """Name of a task, a group or a tag of the library, or a YAML file of yours such as `./my_task.yaml`. Paths of its
    `data_files` start at its folder. Its Python functions run without a sandbox."""
    max_problems: Count | None = None
    """Maximum number of problems per task, chosen by a fixed shuffle. Default: all."""
    num_fewshot: Annotated[int, Field(ge=0, le=64)] | None = None
    """Number of solved examples in front of each problem. Default: that of the task."""
    metric: NonEmptyText | None = None
    """The main metric, such as `acc_norm` or `exact_match,strict-match`. Default: the task's first one."""


BaseSuite = Annotated[BpbSuite | ChoiceSuite | CoreSuite | QuestionsSuite | LmEvalSuite, Field(discriminator="task")]


class BaseEval(StageSection):
    """The base_eval stage measures how well the pretrained model predicts text."""

    upstream: ClassVar = ("pretrain",)
    metrics: ClassVar = ("base_core", "base_core_centred")

    suites: Annotated[dict[Name, BaseSuite], Field(min_length=1)]
    """The evaluations: for each, a name of your own and the fields of the evaluation."""
    samples: tuple[str, ...] = ()
    """Prompts for the model to continue. The run keeps the generated text."""
    sample_tokens: Annotated[int, Field(ge=1, le=4096)] = 32
    """Number of tokens to generate per prompt."""
    init_from: InitFrom | None = None
    """Evaluate these weights instead of this recipe's `pretrain`: a run, a stage folder or a checkpoint folder."""


class Generation(Section):
    """How answers are generated."""

    num_samples: Annotated[int, Field(ge=1, le=256)] = 1
    """Number of answers to generate per problem; several also give pass@k. Multiple-choice tasks ignore it."""
    max_tokens: Annotated[int, Field(ge=1, le=65536)] = 512
    """Maximum length of a generated answer, in tokens."""
    temperature: NonNegative = 0.0
    """Sampling temperature. 0 is greedy."""
    top_k: Annotated[int, Field(ge=1)] | None = 50
    """Sample from this number of most likely tokens. `null` samples from all."""


class ChatProblems(Section):
    """The problems of a task of the chat evaluation."""

    task: ChatTask
    """Kind of problems, and how answers are scored."""
    source: str
    """Name of the source that holds the problems."""
    split: SplitName = "test"
    """Split of the source, or some of its rows, such as `train[-50:]`. The spelling tasks hold out words of their
    own."""
    max_problems: Count | None = None
    """Maximum number of problems, chosen by a fixed shuffle. Default: all."""


class ChatSuite(Generation, ChatProblems):
    """A task of the chat evaluation. Multiple-choice tasks compare the probabilities of the letters; in the other tasks
    the model generates an answer."""


class QuestionProblems(QuestionsSuite):
    """Questions of your own, which the model answers by generating text. Solved examples are earlier turns of the
    conversation."""

    grade: GradeRule
    """What is right: text that equals an answer (`exact`), contains it as words (`contains`), or has it as its last
    number (`number`); text in which an answer is found as a regular expression (`regex`); the letter of the right
    choice (`letter`, which also shows the choices); or what a function of yours returns (`program`)."""
    program: PythonFunction | None = None
    """With `grade: program`: a file and its function, such as `grade.py:score`, called with a map (`question`,
    `answers`, `choices`) and the generated text. It returns a truth value or a number from 0 to 1, and runs in a
    sandbox: without files, network and installed packages. Default function: `grade`."""


class ChatQuestionsSuite(Generation, QuestionProblems):
    """Questions of your own, which the model answers by generating text. Solved examples are earlier turns of the
    conversation."""


class PythonTask(Section):
    """A task that is a class in a Python file of yours."""

    python: PythonClass
    """The file and the class, such as `my_tasks.py:MyTask`. Its methods are `num_examples()`, `get_example(i)`, which
    returns `{messages: [{role, content}, ...]}`, and `evaluate(example, completion)`, which returns a truth value or a
    number from 0 to 1. It runs in a sandbox: without files, network and installed packages."""


class PythonProblems(Section):
    """The problems of a class of the user's."""

    task: PythonTask
    """Where the class is."""
    max_problems: Count | None = None
    """Maximum number of problems, chosen by a fixed shuffle. Default: all."""


class PythonSuite(Generation, PythonProblems):
    """A task that a class of yours asks and grades."""


def kind_of_suite(suite: object) -> str | None:
    """Return the tag of the kind of a suite, or a text that is no tag. None if the suite names no task."""
    task = suite.get("task") if isinstance(suite, dict) else getattr(suite, "task", None)
    if task is None:
        return None
    if isinstance(task, dict | PythonTask):
        return "python"
    return "chat" if task in get_args(ChatTask) else str(task)


AnyChatSuite = Annotated[
    Annotated[ChatSuite, Tag("chat")]
    | Annotated[ChatQuestionsSuite, Tag("questions")]
    | Annotated[PythonSuite, Tag("python")],
    Discriminator(kind_of_suite),
]


class ChatEval(StageSection):
    """The chat_eval stage measures what the chat model can do."""

    upstream: ClassVar = ("rl", "sft", "pretrain")
    metrics: ClassVar = ("chat_core", "chat_core_centred")

    suites: Annotated[dict[Name, AnyChatSuite], Field(min_length=1)]
    """The evaluations: for each, a name of your own and the fields of the evaluation."""
    init_from: InitFrom | None = None
    """Evaluate these weights instead of this recipe's `rl`, `sft` or `pretrain`: a run, a stage folder or a checkpoint
    folder."""
