"""Reads chat data: conversations in one of several JSON forms, one on each line or in each parquet row.

    {"messages": [{"role": "user", "content": "..."}, ...], "ideal"?: "..."}     a bare list of messages
    {"question": "...", "answer": "..."}     {"prompt": "...", "completion": "..."}

An assistant's content may be a list of parts, {"type": "text" | "python" | "python_output", "text": "..."}. Rows of
another form, and rows that train nothing, are refused and counted. Too many of them make the whole source unusable.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nanochat.data.files.json_lines import json_lines
from nanochat.data.files.parquet_batches import parquet_batches
from nanochat.data.files.readers import check_file
from nanochat.data.source_checks import is_small
from nanochat.data.sources import SourceSpec, as_preflight_error, describe
from nanochat.data.task_rows import split_files
from nanochat.errors import StageError
from nanochat.tasks.answer_parsing import strip_special_tokens
from nanochat.tasks.base import Example
from nanochat.tasks.table import TaskName
from nanochat.tokenizer.chat_format import Conversation, Message, Part

MAX_REFUSED_FRAC = 0.01
MIN_REFUSED_LIMIT = 10
"""This many refused rows are tolerated in a source of any size."""
_SHOWN = 5
"""Refused rows that an error message shows."""


class BadConversation(ValueError):  # noqa: N818 -- a refused row is counted; it is no error by itself
    """What is wrong with one row."""


@dataclass(frozen=True)
class Conversations:
    """Chat data. It is stored as compact JSON, because a million message objects need more memory than their text."""

    name: ClassVar[TaskName] = "conversations"
    packed: Sequence[bytes]
    refused: Sequence[str] = ()
    """The refused rows, as `file:line: reason`."""

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> Example:
        return Example(_unpack(self.packed[index]))

    def grade(self, example: Example, completion: str) -> bool:
        """Return whether the completion equals the reference answer."""
        return strip_special_tokens(completion) == example.conversation.messages[-1].text().strip()


def read_conversations(source: SourceSpec, split: str, *, base: Path, max_examples: int | None = None) -> Conversations:
    """Return the conversations of a split, in order. Bad rows are left out and listed in `refused`.

    Raises:
        StageError: there are more bad rows than `MAX_REFUSED_FRAC` and `MIN_REFUSED_LIMIT` allow, or no good one.
        PreflightError: a file or the split is missing.
    """
    packed: list[bytes] = []
    refused: list[str] = []
    for place, value in _read_values(split_files(source, split, base=base)):
        if max_examples is not None and len(packed) >= max_examples:
            break
        try:
            if isinstance(value, BadConversation):
                raise value
            packed.append(_pack(parse_conversation(value)))
        except BadConversation as error:
            refused.append(f"{place}: {error}")
    limit = max(MIN_REFUSED_LIMIT, int(MAX_REFUSED_FRAC * (len(packed) + len(refused))))
    if len(refused) > limit or not packed:
        shown = "\n  ".join(refused[:_SHOWN]) or "there are no rows"
        total = len(packed) + len(refused)
        allowed = f"(at most {limit} may be refused)" if packed else "(at least one must be usable)"
        raise StageError(
            f"{describe(source)}, split `{split}`: {len(refused)} of {total} conversations cannot be used {allowed}:\n"
            f"  {shown}"
        )
    return Conversations(packed, refused)


def check_conversations(source: SourceSpec, split: str, *, base: Path, max_examples: int | None = None) -> None:
    """Check that the files of a split are complete and contain usable conversations.

    Small splits are read as training will read them, with `max_examples`. Large ones are read up to the first usable
    conversation.

    Raises:
        PreflightError: the split is unusable; the message names the source, the file and the first bad rows.
    """
    with as_preflight_error(source):
        for path in split_files(source, split, base=base):
            check_file(path, ())
        limit = max_examples if is_small(source, split, base=base) else 1
        read_conversations(source, split, base=base, max_examples=limit)


def parse_conversation(value: object) -> Conversation:
    """Return the conversation in a decoded JSON value, in any of the forms above.

    Raises:
        BadConversation: the value has another form, or the conversation trains nothing.
    """
    match value:
        case [*messages]:
            return _checked([_message(message) for message in messages])
        case {"messages": [*messages], **rest}:
            parsed = [_message(message) for message in messages]
            ideal = rest.get("ideal")
            if parsed and parsed[-1].role == "user" and ideal is not None:
                parsed.append(Message("assistant", _text(ideal[0] if isinstance(ideal, list) and ideal else ideal)))
            return _checked(parsed)
        case {"question": question, "answer": answer}:
            return _checked([Message("user", _text(question)), Message("assistant", _text(answer))])
        case {"prompt": prompt, "completion": completion}:
            return _checked([Message("user", _text(prompt)), Message("assistant", _text(completion))])
        case dict():
            keys = ", ".join(map(str, value)) or "none"
            raise BadConversation(f"expected `messages`, or question/answer, or prompt/completion; keys: {keys}")
        case _:
            raise BadConversation(f"expected an object or a list of messages, found {type(value).__name__}")


def _message(value: object) -> Message:
    match value:
        case {"role": "system" | "user" as role, "content": content}:
            return Message(role, _text(content))
        case {"role": "assistant", "content": [*parts]}:
            return Message("assistant", tuple(_part(part) for part in parts))
        case {"role": "assistant", "content": content}:
            return Message("assistant", _text(content))
        case {"role": role, "content": _}:
            raise BadConversation(f"role {role!r}; expected system, user or assistant")
        case _:
            raise BadConversation(f"a message must have `role` and `content`; found {str(value)[:80]}")


def _part(value: object) -> Part:
    match value:
        case {"type": "text" | "python" | "python_output" as kind, "text": str(text)}:
            return Part(kind, text)
        case _:
            raise BadConversation(
                f"a part must have `type` (text, python, python_output) and `text`: {str(value)[:80]}"
            )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadConversation(f"expected text, found {type(value).__name__}")
    return value


def _checked(messages: list[Message]) -> Conversation:
    """Return the conversation if roles alternate, no answer is empty, and the last message is an answer."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if len(turns) < 2:
        raise BadConversation("expected at least a question and an answer")
    for number, message in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected:
            place = number + 1 + len(messages) - len(turns)
            raise BadConversation(f"message {place} is from `{message.role}`; expected `{expected}` there")
        if message.role == "assistant" and not message.text():
            raise BadConversation("an empty answer trains nothing")
    if turns[-1].role != "assistant":
        raise BadConversation("the last message must be the assistant's")
    return Conversation(tuple(messages))


def _read_values(paths: Sequence[Path]) -> Iterator[tuple[str, object]]:
    """Yield the place of each row and its decoded value, or a `BadConversation` for a line that is not JSON."""
    for path in paths:
        if path.suffix.lower() == ".jsonl":
            for line in json_lines(path):
                yield line.where(), line.value if line.problem is None else BadConversation(line.problem)
        else:
            count = 0
            for batch, _ in parquet_batches(path, None):
                for row in batch.to_pylist():
                    yield f"{path} row {count}", row
                    count += 1


def _pack(conversation: Conversation) -> bytes:
    flat: list[list[object]] = []
    for message in conversation.messages:
        content = message.content
        texts = [content] if isinstance(content, str) else [[part.kind, part.text] for part in content]
        flat.append([message.role, *texts])
    return json.dumps(flat, ensure_ascii=False, separators=(",", ":")).encode()


def _unpack(packed: bytes) -> Conversation:
    messages = []
    for role, *content in json.loads(packed):
        is_text = len(content) == 1 and isinstance(content[0], str)
        messages.append(Message(role, content[0] if is_text else tuple(Part(kind, text) for kind, text in content)))
    return Conversation(tuple(messages))
