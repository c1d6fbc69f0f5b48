"""Shows which text of a conversation the model is trained on, as runs of trained and untrained text."""

from __future__ import annotations

from itertools import groupby

from nanochat.tokenizer.chat_format import Conversation, Rendered, render

_FIRST_SPECIAL = 0x110000
"""Ids from here on are special tokens. Those below are the numbers of characters."""


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


def marked_runs(conversation: Conversation) -> list[tuple[str, bool]]:
    """Return the rendered text of a conversation in runs, each with whether the model is trained on it.

    The loss mask changes only between the parts of a conversation, so the runs are the same with every tokenizer.
    """
    tokenizer = _CharacterTokenizer()
    rendered: Rendered = render(tokenizer, conversation)
    pairs = zip(rendered.ids, rendered.mask, strict=True)
    return [
        ("".join(tokenizer.decode(token) for token, _ in run), bool(mask))
        for mask, run in groupby(pairs, key=lambda pair: pair[1])
    ]
