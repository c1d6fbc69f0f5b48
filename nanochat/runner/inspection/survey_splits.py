"""Reads the documents of a source, or the conversations of a task, and fills the report on a split.

Conversations are shown in runs of text, each marked as trained on or not.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby, islice
from pathlib import Path

from nanochat.data.documents import single_pass
from nanochat.data.source_splits import Split
from nanochat.data.sources.source_spec import SourceSpec, as_preflight_error
from nanochat.errors import PreflightError
from nanochat.plurals import several
from nanochat.runner.inspection.source_inputs import TaskInput
from nanochat.runner.inspection.split_report import SplitReport, TextRun
from nanochat.tasks.build import build_task
from nanochat.tasks.conversations import Conversations
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat_format import Conversation, Rendered, render

_BATCH_DOCUMENTS = 64
_SHOWN_REASONS = 5
_FIRST_SPECIAL = 0x110000
"""Ids from here on are special tokens. Those below are the numbers of characters."""


def survey_documents(
    spec: SourceSpec, split: Split, *, base: Path, tokenizer: Tokenizer | None, limit: int, samples: int
) -> SplitReport:
    """Return a summary of the first `limit` documents of a split. Without a tokenizer, no tokens are counted.

    An error ends the reading. It is kept in the report, with what was read before.
    """
    report = SplitReport(split, "documents", limit)
    try:
        with as_preflight_error(spec):
            documents = single_pass(spec, split, base=base, notify=report.notes.append)
            while batch := list(islice(documents, min(_BATCH_DOCUMENTS, limit - len(report.survey.lengths)))):
                for text in batch:
                    report.survey.add(text)
                if tokenizer is not None:
                    report.survey.token_lengths += [len(ids) for ids in tokenizer.encode_batch(batch)]
                report.texts += batch[: samples - len(report.texts)]
            report.is_whole = next(documents, None) is None
    except PreflightError as error:
        report.error = error
    return report


def survey_task(
    task: TaskInput,
    source: SourceSpec,
    *,
    base: Path,
    tokenizer: Tokenizer | None,
    context: int | None,
    limit: int,
    samples: int,
) -> SplitReport:
    """Return a summary of the conversations of a task: at most the first `limit`.

    `context` is the most tokens that a conversation may have in training, None if it is not known.
    """
    report = SplitReport(f"{task.task}, split {task.split}", "conversations", limit)
    count = limit if task.max_examples is None else min(limit, task.max_examples)
    try:
        with as_preflight_error(source):
            examples = build_task(task.task, source, task.split, max_examples=count, seed=0, base=base, choose="first")
    except PreflightError as error:
        report.error = error
        return report
    report.is_whole = len(examples) < count or count == task.max_examples
    if isinstance(examples, Conversations):
        _add_notes(report, examples)
    trained = total = 0
    for example in (examples[i] for i in range(len(examples))):
        runs = marked_runs(example.conversation)
        texts = [message.text() for message in example.conversation.messages]
        report.survey.add("\n".join(texts), identity="".join(text for text, _ in runs))
        if tokenizer is not None:
            rendered = render(tokenizer, example.conversation)
            report.survey.token_lengths.append(len(rendered.ids))
            trained, total = trained + sum(rendered.mask), total + len(rendered.ids)
        else:
            trained += sum(len(text) for text, is_trained in runs if is_trained)
            total += sum(len(text) for text, _ in runs)
        if len(report.chats) < samples:
            report.chats.append(runs)
    if not task.is_trained:
        report.notes.append("the marked answers are only compared with the model's; it is not trained on them")
    elif total:
        unit = "tokens" if tokenizer is not None else "characters"
        report.notes.append(
            f"{trained / total:.1%} of the {unit} are trained on; they are coloured, or in braces with plus signs"
        )
    _add_note_on_long_ones(report, context)
    return report


def _add_notes(report: SplitReport, examples: Conversations) -> None:
    if examples.refused:
        report.notes.append(f"rows that are not used: {len(examples.refused):,}")
        report.notes += [f"  {reason}" for reason in islice(examples.refused, _SHOWN_REASONS)]
    if examples.cut:
        for what, count in Counter(what for what, _ in examples.cut).most_common():
            report.notes.append(f"conversations that are used only up to {what}: {count:,}")
        report.notes += [f"  {reason}" for _, reason in islice(examples.cut, _SHOWN_REASONS)]
    if examples.ignored:
        report.notes.append(f"keys that are ignored: {', '.join(examples.ignored)}")


def _add_note_on_long_ones(report: SplitReport, context: int | None) -> None:
    if context is None:
        return
    long_ones = sum(length > context + 1 for length in report.survey.token_lengths)
    if long_ones:
        report.notes.append(
            f"cut or left out because they are longer than the context of {context:,} tokens: "
            f"{several(long_ones, 'conversation')}"
        )


class _CharacterTokenizer:
    """Makes an id of each character, so that a rendered conversation can be shown without a trained tokenizer."""

    def __init__(self) -> None:
        self._names: list[str] = []

    @property
    def bos_id(self) -> int:
        return self.special("<|bos|>")

    def special(self, name: str) -> int:
        if name not in self._names:
            self._names.append(name)
        return _FIRST_SPECIAL + self._names.index(name)

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, token: int) -> str:
        return chr(token) if token < _FIRST_SPECIAL else self._names[token - _FIRST_SPECIAL]


def marked_runs(conversation: Conversation) -> list[TextRun]:
    """Return the rendered text of a conversation in runs, each with a flag: whether the model is trained on it.

    The loss mask changes only between the parts of a conversation, so the runs are the same with every tokenizer.
    """
    tokenizer = _CharacterTokenizer()
    rendered: Rendered = render(tokenizer, conversation)
    pairs = zip(rendered.ids, rendered.mask, strict=True)
    return [
        ("".join(tokenizer.decode(token) for token, _ in run), bool(mask))
        for mask, run in groupby(pairs, key=lambda pair: pair[1])
    ]
