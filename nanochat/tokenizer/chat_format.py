"""Conversations as tokens: the layout of turns, and which tokens the model is trained to produce.

    <|bos|> (<|user_start|> text <|user_end|> <|assistant_start|> parts <|assistant_end|>)*

Every text is tokenized by itself between the special tokens. The loss mask is 1 on what the assistant says, on the
Python it writes with its two marks, and on its end mark; 0 on everything that others say, tool output included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

from nanochat.errors import NanochatError

Role = Literal["system", "user", "assistant"]


class ConversationError(NanochatError, ValueError):
    """Messages are in an order, or of a kind, that a conversation cannot have."""

    exit_code = 4


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer here."""

    @property
    def bos_id(self) -> int:
        """The id that starts a conversation."""

    def special(self, name: str) -> int:
        """Return the id of a special token."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""


@dataclass(frozen=True)
class Part:
    """A piece of an assistant's turn: what it says, Python that it runs, or what that printed."""

    kind: Literal["text", "python", "python_output"]
    text: str


@dataclass(frozen=True)
class Message:
    """One turn; only the assistant's may consist of parts."""

    role: Role
    content: str | tuple[Part, ...]

    def text(self) -> str:
        """Return all that the turn says, parts joined."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


@dataclass(frozen=True)
class Conversation:
    """Turns in order: perhaps a system message, then user and assistant in turn."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Rendered:
    """Ids of a conversation, and for each whether the model is trained to produce it (1) or not (0)."""

    ids: list[int]
    mask: list[int]


def render(tokenizer: ChatTokenizer, conversation: Conversation) -> Rendered:
    """Return a whole conversation as ids with its loss mask.

    A system message is put before the first user text, with an empty line between.

    Raises:
        ConversationError: roles do not alternate starting with the user, or there is no turn at all.
    """
    canvas = _Canvas(tokenizer)
    for message in _without_system(conversation):
        canvas.turn(message)
    return Rendered(canvas.ids, canvas.mask)


def render_for_completion(
    tokenizer: ChatTokenizer, conversation: Conversation, *, max_tokens: int | None = None
) -> list[int]:
    """Return the prompt after which the assistant speaks: a last assistant message is dropped, its start mark added.

    Where the prompt is longer than `max_tokens`, the oldest turns go, then the oldest text of the last question. The
    system message stays in front of the oldest turn that is left, while it fits.

    Raises:
        ConversationError: as `render`, or nothing is left to answer, or `max_tokens` cannot hold the marks.
    """
    messages = conversation.messages
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].role != "user":
        raise ConversationError("there is no user message to answer")
    system = messages[:1] if messages[0].role == "system" else ()
    turns = messages[len(system) :]
    _without_system(Conversation(messages))
    while True:
        ids = [*render(tokenizer, Conversation((*system, *turns))).ids, tokenizer.special("<|assistant_start|>")]
        if max_tokens is None or len(ids) <= max_tokens:
            return ids
        if len(turns) == 1:
            return _cut_question(ids, max_tokens)
        turns = turns[2:]


def _cut_question(ids: list[int], max_tokens: int) -> list[int]:
    head, text, tail = ids[:2], ids[2:-2], ids[-2:]
    kept = max_tokens - len(head) - len(tail)
    if kept < 1:
        raise ConversationError(f"a context of {max_tokens} tokens cannot hold a question")
    return head + text[-kept:] + tail


def _without_system(conversation: Conversation) -> Sequence[Message]:
    """Return the turns with a leading system message merged into the first user's, once their order is checked."""
    messages = conversation.messages
    if messages and messages[0].role == "system":
        system, *rest = messages
        if not rest or rest[0].role != "user":
            raise ConversationError("a system message must be followed by a user message")
        messages = (Message("user", f"{_plain(system, 1)}\n\n{_plain(rest[0], 2)}"), *rest[1:])
    if not messages:
        raise ConversationError("a conversation needs at least one message")
    for i, message in enumerate(messages):
        expected = "assistant" if i % 2 else "user"
        if message.role != expected:
            place = i + 1 + len(conversation.messages) - len(messages)
            raise ConversationError(f"message {place} is from `{message.role}`; expected `{expected}` there")
    return messages


def _plain(message: Message, place: int) -> str:
    if not isinstance(message.content, str):
        raise ConversationError(f"message {place} is from `{message.role}`: its content must be one text")
    return message.content


class _Canvas:
    """Ids and mask while they are written."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self.ids = [tokenizer.bos_id]
        self.mask = [0]

    def turn(self, message: Message) -> None:
        if message.role != "assistant":
            self._special("<|user_start|>", 0)
            self._text(_plain(message, 1), 0)
            self._special("<|user_end|>", 0)
            return
        self._special("<|assistant_start|>", 0)
        parts = (Part("text", message.content),) if isinstance(message.content, str) else message.content
        for part in parts:
            self._part(part)
        self._special("<|assistant_end|>", 1)

    def _part(self, part: Part) -> None:
        match part.kind:
            case "text":
                self._text(part.text, 1)
            case "python":
                self._special("<|python_start|>", 1)
                self._text(part.text, 1)
                self._special("<|python_end|>", 1)
            case "python_output":
                self._special("<|output_start|>", 0)
                self._text(part.text, 0)
                self._special("<|output_end|>", 0)
            case _:
                assert_never(part.kind)

    def _special(self, name: str, mask: int) -> None:
        self.ids.append(self._tokenizer.special(name))
        self.mask.append(mask)

    def _text(self, text: str, mask: int) -> None:
        ids = self._tokenizer.encode(text)
        self.ids.extend(ids)
        self.mask.extend([mask] * len(ids))
