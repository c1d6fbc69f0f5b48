"""The conversations that fine-tuning trains on, and those that it holds out for validation.

A conversation that equals a held-out one of any task is never trained on, whichever task it belongs to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nanochat.data.files.held_out_documents import dividing_limit
from nanochat.data.loaders.batches import Batch
from nanochat.data.packing.conversation_packer import PackedConversation, fit_to_row
from nanochat.data.splits import hash_share
from nanochat.errors import StageError
from nanochat.model.low_memory.loss import IGNORED
from nanochat.plan.specs.inputs import SftItem
from nanochat.plan.specs.training import SftSpec
from nanochat.plan.text.mixture_notes import MixturePart, count_parts, describe_mixture, weight_warnings
from nanochat.plurals import several
from nanochat.stages.process.context import StageContext, derive_seed
from nanochat.tasks.build import build_task
from nanochat.tasks.conversations import Conversations
from nanochat.tasks.mixture import PROBLEM_SHUFFLE_SEED, TaskMixture, TaskSubset, take_shuffled
from nanochat.tasks.task import Task
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat_format import Conversation, render


@dataclass(frozen=True)
class SftData:
    """The mixture to train on, the held-out examples of each task that has any, and counts of what is not used."""

    mixture: TaskMixture
    held_out: Sequence[Task]
    refused: int
    """Rows of the tasks' data that hold no conversation."""

    @property
    def held_out_examples(self) -> int:
        return sum(map(len, self.held_out))


@dataclass(frozen=True)
class RenderedConversations:
    """A sequence of token ids and loss masks. Indexing renders that conversation of the mixture."""

    examples: TaskMixture
    tokenizer: Tokenizer

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int, /) -> tuple[list[int], list[int]]:
        rendered = render(self.tokenizer, self.examples[index].conversation)
        return rendered.ids, rendered.mask


def read_sft_data(spec: SftSpec, context: StageContext) -> SftData:
    """Return the examples to train on and those to validate on.

    Raises:
        StageError: a task has nothing to hold out, or nothing is left to train on.
    """
    tasks: list[Task] = []
    held_out: dict[str, Task] = {}
    refused = 0
    for item in spec.data:
        context.report_progress(0.0, f"reading {item.name}")
        task = _build(item, item.split, item.max_examples, spec.seed, context)
        refused += _report_rows(item.name, task, context)
        tasks.append(task)
        if item.validation_split is not None:
            held_out[item.name] = _build(item, item.validation_split, None, spec.seed, context)
        elif item.validation_frac is not None:
            held_out[item.name] = _hold_out_by_hash(item.name, task, item.validation_frac)
    if held_out:
        tasks = _without_held_out(tasks, spec.data, held_out, context)
    parts = [
        MixturePart(name=item.name, examples=len(task), repeat=item.repeat, weight=item.weight)
        for task, item in zip(tasks, spec.data, strict=True)
    ]
    context.log_line(describe_mixture(parts, "conversation"))
    for warning in weight_warnings(parts, "sft.data", "conversation", can_repeat=True):
        context.notify_user(f"warning: {warning}")
    seed, shares = derive_seed(spec.seed, "sft", "mixture"), zip(tasks, count_parts(parts), strict=True)
    return SftData(TaskMixture(list(shares), seed=seed), list(held_out.values()), refused)


def _build(item: SftItem, split: str, max_examples: int | None, seed: int, context: StageContext) -> Task:
    return build_task(
        item.task,
        item.source,
        split,
        max_examples=max_examples,
        seed=derive_seed(seed, "sft", item.name),
        base=context.base,
    )


def _hold_out_by_hash(name: str, task: Task, frac: float) -> Task:
    """Return the share of a task's examples that the hash of each conversation chooses: at least one, but not all."""
    shares = [hash_share(_canonical(task[i].conversation)) for i in range(len(task))]
    if not shares or min(shares) == max(shares):
        raise StageError(
            f"sft.data.{name}.validation: all its conversations ({len(task):,}) are equal, so none can be held out"
        )
    limit = dividing_limit(frac, min(shares), max(shares))
    return TaskSubset(task, [i for i, share in enumerate(shares) if share < limit])


def _without_held_out(
    tasks: Sequence[Task], items: Sequence[SftItem], held_out: dict[str, Task], context: StageContext
) -> list[Task]:
    """Return the tasks without the conversations that are held out. Raise a StageError if a task has no others."""
    keys = {_key(task[i].conversation) for task in held_out.values() for i in range(len(task))}
    rest: list[Task] = []
    for task, item in zip(tasks, items, strict=True):
        kept = [i for i in range(len(task)) if _key(task[i].conversation) not in keys]
        if len(task) and not kept:
            raise StageError(f"sft.data.{item.name}: all its conversations ({len(task):,}) are held out for validation")
        rest.append(task if len(kept) == len(task) else TaskSubset(task, kept))
        held, left_out = len(held_out.get(item.name, ())), len(task) - len(kept)
        context.log_line(
            f"{item.name}: held out: {several(held, 'conversation')}; not trained on, because they equal a "
            f"held-out one: {left_out:,} of {len(task):,}"
        )
    return rest


def _canonical(conversation: Conversation) -> str:
    """Return a text that equal conversations have in common, and different ones do not, in every version of Python."""
    messages = [
        [m.role, m.content if isinstance(m.content, str) else [[p.kind, p.text] for p in m.content], m.is_trained]
        for m in conversation.messages
    ]
    return json.dumps(messages, separators=(",", ":"))


def _key(conversation: Conversation) -> bytes:
    """Return a digest of a conversation, because the texts of a large split would need much memory."""
    return hashlib.blake2b(_canonical(conversation).encode(), digest_size=16).digest()


def _report_rows(name: str, task: Task, context: StageContext) -> int:
    """Report which rows and keys of a task's data are not used. Return the number of those rows."""
    while isinstance(task, TaskSubset):
        task = task.task
    if not isinstance(task, Conversations):
        return 0
    for remark in task.remarks():
        context.notify_user(f"{name}: {remark}")
    if task.ignored:
        context.notify_user(f"{name}: keys that are not used: {', '.join(task.ignored)}")
    return len(task.refused)


def held_out_chats(
    tasks: Sequence[Task], tokenizer: Tokenizer, *, sequence_len: int, max_tokens: int, tokens_per_batch: int
) -> list[Batch]:
    """Return held-out conversations as batches: each conversation in a row of its own, so that others do not help.

    Each task contributes its share of `max_tokens` and at least one conversation, in a fixed random order. The rows of
    a batch have about the same length. Targets that the model is not trained on are -1. Conversations that do not fit
    are cut or dropped as in training.

    Raises:
        StageError: no held-out conversation fits a row with an answer in it.
    """
    total = sum(map(len, tasks))
    chosen: list[PackedConversation] = []
    for task in tasks:
        chosen += _first_tokens(task, tokenizer, sequence_len, max_tokens * len(task) / total)
    if not chosen:
        raise StageError(
            f"none of {several(total, 'held-out conversation')} fits {sequence_len + 1:,} tokens with an answer in it; "
            "raise `sft.sequence_len`, or hold out more"
        )
    chosen.sort(key=len)  # stable, so equal data gives equal batches
    return [_pad(rows, tokenizer.bos_id) for rows in _batches(chosen, tokens_per_batch)]


def _first_tokens(task: Task, tokenizer: Tokenizer, sequence_len: int, count: float) -> Iterator[PackedConversation]:
    end = tokenizer.special("<|assistant_end|>")
    shuffled, tokens = take_shuffled(task, len(task), seed=PROBLEM_SHUFFLE_SEED), 0
    for i in range(len(shuffled)):
        if tokens >= count:
            return
        rendered = render(tokenizer, shuffled[i].conversation)
        row = fit_to_row(rendered.ids, rendered.mask, number=i, row_tokens=sequence_len + 1, turn_end_id=end)
        if row is not None:
            tokens += len(row)
            yield row


def _batches(rows: Sequence[PackedConversation], tokens_per_batch: int) -> Iterator[Sequence[PackedConversation]]:
    """Yield batches of rows, which are in order of length: at most `tokens_per_batch` with padding, or one row."""
    start = 0
    for end in range(1, len(rows) + 1):
        if end == len(rows) or (end + 1 - start) * len(rows[end]) > tokens_per_batch:
            yield rows[start:end]
            start = end


def _pad(rows: Sequence[PackedConversation], pad_id: int) -> Batch:
    length = max(map(len, rows)) - 1
    inputs = np.full((len(rows), length), pad_id, dtype=np.int32)
    targets = np.full((len(rows), length), IGNORED, dtype=np.int32)
    for i, row in enumerate(rows):
        inputs[i, : len(row) - 1] = row.ids[:-1]
        targets[i, : len(row) - 1] = np.where(row.mask[1:] == 1, row.ids[1:], IGNORED)
    return Batch(inputs, targets)
