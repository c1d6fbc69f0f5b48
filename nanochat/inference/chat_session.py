"""A chat with a model: its history, its system prompt, its settings, and answers streamed as text.

Not here: slash commands and the terminal (`nanochat.cli`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nanochat.inference.engine import Engine, prompt_limit
from nanochat.tokenizer.bpe import StreamDecoder, Tokenizer
from nanochat.tokenizer.chat_format import Conversation, Message, Part, render_for_completion

PartKind = Literal["text", "python", "python_output"]

_OPENS: dict[str, PartKind] = {"<|python_start|>": "python", "<|output_start|>": "python_output"}
_CLOSES = ("<|python_end|>", "<|output_end|>")
_SHOWN = {"<|python_start|>": "[", "<|python_end|>": "]", "<|output_start|>": "[= ", "<|output_end|>": "]"}


@dataclass(frozen=True)
class ChatSettings:
    """How answers are sampled."""

    temperature: float = 0.8
    top_k: int | None = 50
    max_tokens: int = 256
    seed: int = 42


class ChatSession:
    """Remembers the turns of a chat and answers the next one. The oldest turns are dropped if the context is full."""

    def __init__(self, engine: Engine, *, system: str | None = None, settings: ChatSettings | None = None) -> None:
        self.engine, self.tokenizer = engine, engine.tokenizer
        self.system = system
        """The system prompt, which may be replaced at any time."""
        self.settings = settings if settings is not None else ChatSettings()
        """How later answers are sampled; may be replaced as well."""
        self.turns: tuple[Message, ...] = ()

    def reset(self) -> None:
        """Forget all turns but keep the system prompt and the settings."""
        self.turns = ()

    def prompt_ids(self, text: str) -> list[int]:
        """Return the prompt for the next question: the newest turns that leave room for an answer."""
        system = (Message("system", self.system),) if self.system else ()
        conversation = Conversation((*system, *self.turns, Message("user", text)))
        limit = prompt_limit(self.engine.model.config.sequence_len, self.settings.max_tokens)
        return render_for_completion(self.tokenizer, conversation, max_tokens=limit)

    def reply(self, text: str) -> Generator[str, None, None]:
        """Yield the answer in pieces of whole characters. Calculator calls are shown as `[6*7][= 42]`.

        Question and answer become part of the history when the answer ends. If the caller closes the iterator early,
        the partial answer does. The same seed, settings and questions give the same answers.
        """
        settings = self.settings
        turn = len(self.turns) // 2
        seed = int(np.random.SeedSequence(settings.seed, spawn_key=(turn,)).generate_state(1, np.uint32)[0])
        tokens = self.engine.generate(
            self.prompt_ids(text),
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            seed=seed,
        )
        answer: list[int] = []
        is_complete = False
        decoder = StreamDecoder(self.tokenizer)
        shown = {self.tokenizer.special(name): text for name, text in _SHOWN.items()}
        try:
            for token in tokens:
                answer.append(token)
                piece = decoder.flush() + shown[token] if token in shown else decoder.feed(token)
                if piece:
                    yield piece
            rest = decoder.flush()
            if rest:
                yield rest
            is_complete = True
        finally:
            if answer or is_complete:
                content = parse_answer(self.tokenizer, answer)
                self.turns = (*self.turns, Message("user", text), Message("assistant", content))


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
