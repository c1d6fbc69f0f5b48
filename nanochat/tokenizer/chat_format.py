"""Converts conversations to token ids and a mask of the tokens that the model is trained on.

    <|bos|> (<|user_start|> text <|user_end|> <|assistant_start|> parts <|assistant_end|>)*

Each text between two special tokens is tokenized separately. The loss mask is 1 for the assistant's text, for its
Python code including `<|python_start|>` and `<|python_end|>`, and for `<|assistant_end|>`. It is 0 for everything else,
such as the user's text, the output of tools, and messages of the assistant that are not trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

from nanochat.errors import NanochatError

Role = Literal["system", "user", "assistant"]


class ConversationError(NanochatError, ValueError):
    """The messages of a conversation have the wrong order or kind."""

    exit_code = 4


class ChatTokenizer(Protocol):
    """The methods of a tokenizer that this module needs."""

    @property
    def bos_id(self) -> int:
        """The id that starts a conversation."""

    def special(self, name: str) -> int:
        """Return the id of a special token."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""


PartKind = Literal["text", "python", "python_output"]


@dataclass(frozen=True)
class Part:
    """A part of an assistant message: text, Python code that it runs, or the output of that code."""

    kind: PartKind
    text: str


@dataclass(frozen=True)
class Message:
    """A message. Only an assistant message may consist of parts."""

    role: Role
    content: str | tuple[Part, ...]
    is_trained: bool = True
    """Whether the model is trained on this message, if it is the assistant's. Otherwise it is context only."""

    def text(self) -> str:
        """Return the content of the message, with its parts concatenated."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


@dataclass(frozen=True)
class Conversation:
    """An optional system message, followed by alternating user and assistant messages."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Rendered:
    """The ids of a conversation, and a mask that is 1 for each id that the model is trained on."""

    ids: list[int]
    mask: list[int]


def render(tokenizer: ChatTokenizer, conversation: Conversation) -> Rendered:
    """Return the ids and the loss mask of a whole conversation.

    A system message is prepended to the first user message, with an empty line in between.

    Raises:
        ConversationError: there is no message, or the roles do not alternate, starting with the user.
    """
    renderer = _Renderer(tokenizer)
    for message in _merge_system(conversation):
        renderer.add(message)
    return Rendered(renderer.ids, renderer.mask)


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt for the assistant's next message, and how much of the conversation did not fit."""

    ids: list[int]
    dropped_messages: int = 0
    """The oldest messages, without the system message."""
    dropped_tokens: int = 0
    """The first tokens of the last user message, which begins with the system message."""

    @property
    def is_cut(self) -> bool:
        return self.dropped_messages > 0 or self.dropped_tokens > 0


def render_for_completion(tokenizer: ChatTokenizer, conversation: Conversation) -> list[int]:
    """Return the ids of the whole prompt for the assistant's next message; see `fit_for_completion`."""
    return fit_for_completion(tokenizer, conversation).ids


def fit_for_completion(
    tokenizer: ChatTokenizer, conversation: Conversation, *, max_tokens: int | None = None
) -> FittedPrompt:
    """Return the prompt for the assistant's next message, which ends with `<|assistant_start|>`.

    A final assistant message is dropped. If the prompt is longer than `max_tokens`, the oldest messages are dropped
    first, and then the start of the last user message. The system message is kept as long as it fits.

    Raises:
        ConversationError: as in `render`; no user message to answer; or `max_tokens` is too small for any text.
    """
    messages = conversation.messages
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].role != "user":
        raise ConversationError("there is no user message to answer")
    system = messages[:1] if messages[0].role == "system" else ()
    others = messages[len(system) :]
    _merge_system(Conversation(messages))  # raises if the roles do not alternate, before any message is dropped
    for dropped in range(0, len(others), 2):
        kept = Conversation((*system, *others[dropped:]))
        ids = [*render(tokenizer, kept).ids, tokenizer.special("<|assistant_start|>")]
        if max_tokens is None or len(ids) <= max_tokens:
            return FittedPrompt(ids, dropped)
    assert max_tokens is not None, "without a limit everything fits"
    truncated = _truncate_question(ids, max_tokens)
    return FittedPrompt(truncated, dropped, len(ids) - len(truncated))


def _truncate_question(ids: list[int], max_tokens: int) -> list[int]:
    head, text, tail = ids[:2], ids[2:-2], ids[-2:]
    kept = max_tokens - len(head) - len(tail)
    if kept < 1:
        raise ConversationError(f"a context of {max_tokens} tokens cannot hold a question")
    return head + text[-kept:] + tail


def _merge_system(conversation: Conversation) -> Sequence[Message]:
    """Check the order of the roles and return the messages, with a system message merged into the first user one."""
    messages = conversation.messages
    if messages and messages[0].role == "system":
        system, *rest = messages
        if not rest or rest[0].role != "user":
            raise ConversationError("a system message must be followed by a user message")
        messages = (Message("user", f"{_plain(system, 1)}\n\n{_plain(rest[0], 2)}"), *rest[1:])
    if not messages:
        raise ConversationError("a conversation needs at least one message")
    first = 1 + len(conversation.messages) - len(messages)
    for place, message in enumerate(messages, start=first):
        expected = "assistant" if (place - first) % 2 else "user"
        if message.role != expected:
            raise ConversationError(f"message {place} is from `{message.role}`; expected `{expected}` there")
        if expected == "user":
            _plain(message, place)
    return messages


def _plain(message: Message, place: int) -> str:
    if not isinstance(message.content, str):
        raise ConversationError(f"message {place} is from `{message.role}`: its content must be one text")
    return message.content


class _Renderer:
    """Appends messages to a list of ids and a list of mask values."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self.ids = [tokenizer.bos_id]
        self.mask = [0]

    def add(self, message: Message) -> None:
        if message.role != "assistant":
            self._special("<|user_start|>", 0)
            assert isinstance(message.content, str), "checked when the system message was merged"
            self._text(message.content, 0)
            self._special("<|user_end|>", 0)
            return
        self._special("<|assistant_start|>", 0)
        mask = int(message.is_trained)
        parts = (Part("text", message.content),) if isinstance(message.content, str) else message.content
        for part in parts:
            self._part(part, mask)
        self._special("<|assistant_end|>", mask)

    def _part(self, part: Part, mask: int) -> None:
        match part.kind:
            case "text":
                self._text(part.text, mask)
            case "python":
                self._special("<|python_start|>", mask)
                self._text(part.text, mask)
                self._special("<|python_end|>", mask)
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
