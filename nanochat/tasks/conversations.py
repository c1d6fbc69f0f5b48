"""Chat data as a task: reads the conversations of a source, and lists the rows that cannot be used.

`chat_forms.chat_rows` lists the forms that a row may have. Rows of another form, and rows that train nothing, are
refused. Too many of them make the whole source unusable.
Not here: the names of the forms (`chat_forms.form_names`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nanochat.data.files.bad_rows import SHOWN, allowed_bad_rows, first_of_each_file, shortened, shown
from nanochat.data.files.content_checks import check_file
from nanochat.data.files.digests import LineFilter, SeenTexts
from nanochat.data.files.file_kinds import reader_of
from nanochat.data.files.formats.json_lines import parse_line
from nanochat.data.files.formats.parquet_batches import column_is_nested
from nanochat.data.files.formats.readable_file import FileRow, ReadableFile
from nanochat.data.files.readers import read_values
from nanochat.data.source_checks import is_small
from nanochat.data.source_splits import row_files
from nanochat.data.sources.source_spec import SourceSpec, as_preflight_error, describe
from nanochat.data.task_rows import split_files
from nanochat.errors import StageError
from nanochat.plurals import several
from nanochat.tasks.chat_forms.chat_rows import is_needed, parse_row
from nanochat.tasks.chat_forms.row_errors import BadConversation, LeftOutRow, NotText
from nanochat.tasks.parsing import strip_special_tokens
from nanochat.tasks.table import TaskName
from nanochat.tasks.task import Example
from nanochat.tokenizer.chat_format import Conversation, Message, Part

_UNTRAINED = "untrained"
"""Stands for the role of an assistant's message that is not trained on, in packed conversations."""

_FORMS_VERSION = 6
"""Raise it when rows become usable or unusable, so that digests of the usable lines are computed again."""


@dataclass(frozen=True)
class Conversations:
    """Chat data. It is stored as compact JSON, because a million message objects need more memory than their text."""

    name: ClassVar[TaskName] = "conversations"
    packed: Sequence[bytes]
    refused: Sequence[str] = ()
    """The rows that were left out, as `file:line: reason`, including rows with a flag such as `"train": false`."""
    ignored: Sequence[str] = ()
    """Keys of rows and messages that were not read, because they only describe a conversation."""
    cut: Sequence[tuple[str, str]] = ()
    """The conversations that are read up to something that is not text: its kind, and `file:line: reason`."""

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> Example:
        return Example(_unpack(self.packed[index]))

    def remarks(self) -> list[str]:
        """Return a sentence with the number of rows that are not used, and one with that of cut conversations."""
        remarks = []
        if self.refused:
            remarks.append(f"{several(len(self.refused), 'row')} not used:{shown(self.refused)}")
        if self.cut:
            kinds = Counter(what for what, _ in self.cut).most_common()
            counts = ", ".join(f"{count:,} before {what}" for what, count in kinds)
            chats = several(len(self.cut), "conversation")
            remarks.append(
                f"{chats} used only up to what cannot be trained on as text ({counts}):"
                f"{shown([reason for _, reason in self.cut])}"
            )
        return remarks

    def grade(self, example: Example, completion: str) -> bool:
        """Return whether the completion equals the reference answer."""
        return strip_special_tokens(completion) == example.conversation.messages[-1].text().strip()


def read_conversations(source: SourceSpec, split: str, *, base: Path, max_examples: int | None = None) -> Conversations:
    """Return the conversations of a split, in order. Bad rows are left out and listed in `refused`.

    Raises:
        StageError: there are more bad rows than the source's `max_bad_rows` allows, or no good one.
        PreflightError: a file or the split is missing.
    """
    packed: list[bytes] = []
    refused: list[str] = []
    bad: list[str] = []
    cut: list[tuple[str, str]] = []
    ignored: set[str] = set()
    seen = SeenTexts() if source.dedup == "exact" else None
    for row in _read_rows(split_files(source, split, base=base), source, ignored):
        if max_examples is not None and len(packed) >= max_examples:
            break
        try:
            if row.problem is not None:
                raise BadConversation(row.problem)
            reasons: list[NotText] = []
            chat = _pack(parse_row(row.value, ignored, column=source.column, chat_map=source.chat_map, cut=reasons))
            if seen is None or seen.add(chat.decode()):
                packed.append(chat)
                cut += [(reason.what, f"{row.where}: {reason}") for reason in reasons]
        except BadConversation as error:
            refused.append(shortened(f"{row.where}: {error}"))
            if not isinstance(error, LeftOutRow):
                bad.append(refused[-1])
    total = len(packed) + len(refused)
    limit = allowed_bad_rows(source.max_bad_rows, total)
    if len(bad) > limit or not packed:
        problems = bad if len(bad) > limit else refused
        examples = "\n  ".join(first_of_each_file(problems)[:SHOWN]) or "there are no rows"
        allowed = f"(`max_bad_rows` allows {limit:,})" if packed else "(at least one must be usable)"
        raise StageError(
            f"{describe(source)}, split `{split}`: {len(problems):,} of {several(total, 'conversation')} cannot "
            f"be used {allowed}:\n  {examples}"
        )
    return Conversations(packed, refused, sorted(ignored), cut)


def check_conversations(
    source: SourceSpec,
    split: str,
    *,
    base: Path,
    max_examples: int | None = None,
    notify: Callable[[str], None] = lambda note: None,
) -> None:
    """Check that the files of a split are complete and contain usable conversations.

    `notify` receives the numbers of those that are not used or cut, as far as the split is read.

    Small splits are read as training will read them, with `max_examples`. Large ones are read up to the first usable
    conversation.

    Raises:
        PreflightError: the split is unusable; the message names the source, the file and the first bad rows.
    """
    with as_preflight_error(source):
        for path in row_files(source, split, base=base).paths:
            check_file(path)
        limit = max_examples if is_small(source, split, base=base) else 1
        chats = read_conversations(source, split, base=base, max_examples=limit)
    for remark in chats.remarks():
        notify(f"{describe(source)}: {remark}")


def conversation_lines(source: SourceSpec) -> LineFilter:
    """Return the filter of lines that hold a conversation to train on."""
    column, chat_map = source.column, source.chat_map

    def is_usable(_: Path, raw: bytes) -> bool:
        value, problem = parse_line(raw)
        try:
            return problem is None and bool(parse_row(value, set(), column=column, chat_map=chat_map).messages)
        except BadConversation:
            return False

    return LineFilter(f"conversations in {column}, form {_FORMS_VERSION}, {chat_map}", is_usable)


def _read_rows(files: Sequence[ReadableFile], source: SourceSpec, ignored: set[str]) -> Iterator[FileRow]:
    """Yield the rows. Parquet columns that only describe a conversation are not read, but added to `ignored`."""
    for file in files:
        if reader_of(file.path) == "json lines":
            yield from read_values(file)
            continue
        nested = column_is_nested(file)
        needed = [
            name
            for name, is_nested in nested.items()
            if is_needed(name, is_nested=is_nested, column=source.column, chat_map=source.chat_map)
        ]
        ignored.update(nested.keys() - set(needed))
        yield from read_values(file, needed)


def _pack(conversation: Conversation) -> bytes:
    flat: list[list[object]] = []
    for message in conversation.messages:
        content = message.content
        texts = [content] if isinstance(content, str) else [[part.kind, part.text] for part in content]
        flat.append([message.role if message.is_trained else _UNTRAINED, *texts])
    return json.dumps(flat, ensure_ascii=False, separators=(",", ":")).encode()


def _unpack(packed: bytes) -> Conversation:
    messages = []
    for role, *content in json.loads(packed):
        is_text = len(content) == 1 and isinstance(content[0], str)
        body = content[0] if is_text else tuple(Part(kind, text) for kind, text in content)
        is_trained = role != _UNTRAINED
        messages.append(Message(role if is_trained else "assistant", body, is_trained))
    return Conversation(tuple(messages))
