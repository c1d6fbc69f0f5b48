"""Turns the tokens of an answer into text as they arrive, with the model's calculator calls visible.

Calls of the calculator are shown as `[6*7][= 42]`. `StopStrings` ends an answer at a text that the caller names.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.tokenizer.bpe import StreamDecoder, Tokenizer
from nanochat.tokenizer.chat_format import Part, PartKind

_OPENS: dict[str, PartKind] = {"<|python_start|>": "python", "<|output_start|>": "python_output"}
_CLOSES = ("<|python_end|>", "<|output_end|>")
_SHOWN = {"<|python_start|>": "[", "<|python_end|>": "]", "<|output_start|>": "[= ", "<|output_end|>": "]"}


class AnswerDecoder:
    """Decodes the tokens of one answer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._opens = {tokenizer.special(name): kind for name, kind in _OPENS.items()}
        self._closes = {tokenizer.special(name) for name in _CLOSES}
        self._shown = {tokenizer.special(name): text for name, text in _SHOWN.items()}
        self._kind: PartKind = "text"

    def feed(self, token: int) -> list[Part]:
        """Return the text that a token completes, of whole characters; empty while a character is incomplete."""
        if token not in self._shown:
            return self._pieces(self._decoder.feed(token))
        pieces = self.finish()
        self._kind = self._opens.get(token, self._kind)
        pieces += self._pieces(self._shown[token])
        if token in self._closes:
            self._kind = "text"
        return pieces

    def finish(self) -> list[Part]:
        """Return the rest of the text: U+FFFD for an incomplete character, or nothing."""
        return self._pieces(self._decoder.flush())

    def _pieces(self, text: str) -> list[Part]:
        return [Part(self._kind, text)] if text else []


class StopStrings:
    """Cuts a text at the first of some strings, which may be spread over several pieces."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [string for string in strings if string]
        self._held = ""
        self.is_found = False

    def feed(self, text: str) -> str:
        """Return the part of the text so far that can be shown: its end may begin a string, and is held back."""
        self._held += text
        starts = [at for string in self._strings if (at := self._held.find(string)) >= 0]
        if starts:
            self.is_found = True
            return self._release(min(starts))
        return self._release(len(self._held) - self._longest_beginning())

    def finish(self) -> str:
        """Return the text that was held back, at the end of the answer."""
        return "" if self.is_found else self._release(len(self._held))

    def _release(self, end: int) -> str:
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def _longest_beginning(self) -> int:
        """Return the length of the longest end of the held text with which one of the strings begins."""
        longest = max((len(string) for string in self._strings), default=1) - 1
        lengths = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in lengths if any(s.startswith(self._held[-n:]) for s in self._strings)), 0)


def parse_answer(tokenizer: Tokenizer, ids: Sequence[int]) -> str | tuple[Part, ...]:
    """Return the content of the assistant's message: one text, or parts if the model called the calculator.

    A part without an end marker ends with the answer. Rendering the message adds the marker.
    """
    opens = {tokenizer.special(name): kind for name, kind in _OPENS.items()}
    closes = {tokenizer.special(name) for name in _CLOSES}
    parts: list[Part] = []
    kind: PartKind = "text"
    pending: list[int] = []

    def close() -> None:
        if pending or kind != "text":
            parts.append(Part(kind, tokenizer.decode(pending)))
        pending.clear()

    for token in ids:
        if token in opens:
            close()
            kind = opens[token]
        elif token in closes:
            close()
            kind = "text"
        else:
            pending.append(token)
    close()
    if all(part.kind == "text" for part in parts):
        return "".join(part.text for part in parts)
    return tuple(parts)
