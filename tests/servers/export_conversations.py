"""Conversations as our renderer and as other libraries write them."""

from __future__ import annotations

import random
from typing import Any

from nanochat.tokenizer.chat_format import Conversation, Message, Part

_WORDS = (
    "the ",
    "cat",
    " ",
    "\n\n",
    "é漢🙂",
    "<|user_end|>",
    "<|",
    "<\ufdd0|bos|>",
    "<\ufdd0\ufdd0|",
    "|>",
    "\u2581",
    "2+2",
    "",
)


def random_text(draw: random.Random) -> str:
    """Return a text in which special tokens, the guard of the template, and U+2581 are frequent."""
    return "".join(draw.choice(_WORDS) for _ in range(draw.randrange(8)))


def random_conversation(draw: random.Random) -> tuple[Conversation, list[dict[str, Any]]]:
    """Return a conversation of one to four questions, and the same as messages of other libraries."""
    messages = [Message("system", random_text(draw))] if draw.random() < 0.3 else []
    for turn in range(draw.randrange(1, 5)):
        messages.append(Message("user", random_text(draw)))
        if turn == 0 or draw.random() < 0.9:
            messages.append(Message("assistant", _answer(draw)))
        else:
            break
    return Conversation(tuple(messages)), [{"role": x.role, "content": _content(x.content)} for x in messages]


def _answer(draw: random.Random) -> str | tuple[Part, ...]:
    if draw.random() < 0.5:
        return random_text(draw)
    call = (Part("text", random_text(draw)), Part("python", random_text(draw)), Part("python_output", "4"))
    return call[draw.randrange(2) :] * draw.randrange(1, 3)


def _content(content: str | tuple[Part, ...]) -> str | list[dict[str, str]]:
    if isinstance(content, str):
        return content
    return [{"type": part.kind, "text": part.text} for part in content]
