"""Lists the documents and tasks that the stages of a recipe read from each source."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError
from nanochat.plan.plan import Plan
from nanochat.plan.specs.inputs import Input, SftItem, WeightedSource
from nanochat.plan.specs.suites import BpbSuiteSpec, ChatSuiteSpec, ChoiceSuiteSpec
from nanochat.plan.specs.training import SftSpec
from nanochat.runner.preflight.prepare import Prepared
from nanochat.runner.store.stage_cache import ResolvedStage
from nanochat.runner.store.verification import damage_to_read
from nanochat.storage.layout import TOKENIZER_FILE
from nanochat.tasks.table import ExampleTask
from nanochat.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class TaskInput:
    """A task whose examples are conversations made from a split of a source.

    Attributes:
        max_examples: the most examples that are used, None for all.
        is_trained: True if the model is trained on the examples, False if they evaluate it.
    """

    task: ExampleTask
    split: str
    max_examples: int | None
    is_trained: bool


@dataclass(frozen=True)
class SourceInputs:
    """A source, and all that the stages read from it."""

    source: SourceSpec
    items: tuple[Input, ...]
    has_documents: bool
    tasks: tuple[TaskInput, ...]
    others: tuple[str, ...]
    """Evaluations that read the source in a form of their own."""


def source_inputs(plan: Plan, name: str) -> SourceInputs | None:
    """Return the inputs that stages read from the source with this name, None if no stage reads it."""
    items = [(stage, item) for stage in plan.stages for item in stage.inputs if item.source.name == name]
    if not items:
        return None
    tasks: list[TaskInput] = []
    others: list[str] = []
    for stage, item in items:
        match item:
            case SftItem():
                tasks.append(TaskInput(item.task, item.split, item.max_examples, is_trained=not item.is_held_out))
            case ChatSuiteSpec():
                tasks.append(TaskInput(item.task, item.split, item.max_problems, is_trained=False))
            case WeightedSource() | BpbSuiteSpec():
                pass
            case _:
                split = f", split `{item.split}`" if isinstance(item, ChoiceSuiteSpec) and item.split else ""
                others.append(f"{stage.name} reads it for {item.task}{split}")
    has_documents = any(isinstance(item, WeightedSource | BpbSuiteSpec) for _, item in items)
    inputs = tuple(item for _, item in items)
    return SourceInputs(
        inputs[0].source, inputs, has_documents, tuple(dict.fromkeys(tasks)), tuple(dict.fromkeys(others))
    )


def existing_tokenizer(prepared: Prepared) -> Tokenizer | None:
    """Return the recipe's tokenizer if it has been trained, else the one in the starting weights, else None.

    Raises:
        PreflightError: its file is damaged.
    """
    for lookup in prepared.look_up_cache():
        if isinstance(lookup, ResolvedStage) and lookup.record and TOKENIZER_FILE in lookup.record.output_files:
            path = lookup.folder.out / TOKENIZER_FILE
            if (damage := damage_to_read(lookup.folder, lookup.record, path)) is not None:
                raise PreflightError(f"{path} {damage}; run the recipe, which computes the tokenizer again")
            return Tokenizer.load(path)
    for model in prepared.init_models.values():
        model.check()
        if (path := model.folder / TOKENIZER_FILE).is_file():
            return Tokenizer.load(path)
    return None


def chat_context(plan: Plan) -> int | None:
    """Return the most tokens of a conversation in fine-tuning, None if the recipe does not say."""
    return next((stage.spec.sequence_len for stage in plan.stages if isinstance(stage.spec, SftSpec)), None)
