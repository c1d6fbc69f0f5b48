"""A chat with a model: its history, its system prompt, its settings, and answers streamed as text.

Not here: slash commands and the terminal (`nanochat.cli`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import numpy as np

from nanochat.inference.answer_text import AnswerDecoder, parse_answer
from nanochat.inference.chat_settings import ChatSettings
from nanochat.inference.engine import Engine, answer_limit, fit_text, prompt_limit
from nanochat.inference.sampling import Sampling
from nanochat.plurals import several
from nanochat.tokenizer.chat_format import Conversation, FittedPrompt, Message, fit_for_completion


class ChatSession:
    """Remembers the turns of a chat and answers the next one. A raw session continues each text by itself instead.

    The oldest turns are dropped if the context is full, and then the start of the question; `notes` says so.
    """

    def __init__(
        self, engine: Engine, *, system: str | None = None, settings: ChatSettings | None = None, is_raw: bool = False
    ) -> None:
        """Begin a chat; with `is_raw`, texts are continued as they are, as a base model does."""
        self.engine, self.tokenizer, self.is_raw = engine, engine.tokenizer, is_raw
        self.system = system
        """The system prompt, which may be replaced at any time."""
        self.settings = settings if settings is not None else ChatSettings()
        """How later answers are sampled; may be replaced as well."""
        self.turns: tuple[Message, ...] = ()
        self.unread: tuple[str, ...] = ()
        """Sentences about old messages, and the beginning of the question, that the model did not read."""
        self.notes: tuple[str, ...] = ()
        """The sentences of `unread`, and one about the answer if it was stopped at a limit."""

    def reset(self) -> None:
        """Forget all turns but keep the system prompt and the settings."""
        self.turns = ()

    def prompt(self, text: str) -> FittedPrompt:
        """Return the prompt for the next question: the newest turns that leave room for an answer."""
        limit = prompt_limit(self._context, self.settings.max_tokens)
        if self.is_raw:
            return fit_text(self.tokenizer, text, max_tokens=limit)
        system = (Message("system", self.system),) if self.system else ()
        conversation = Conversation((*system, *self.turns, Message("user", text)))
        return fit_for_completion(self.tokenizer, conversation, max_tokens=limit)

    def reply(self, text: str) -> Generator[str, None, None]:
        """Yield the answer in pieces of whole characters. Calculator calls are shown as `[6*7][= 42]`.

        Question and answer become part of the history when the answer ends. If the caller closes the iterator early,
        only the part that was generated is kept. The same seed, settings and questions give the same answers.
        """
        settings = self.settings
        turn = len(self.turns) // 2
        seed = int(np.random.SeedSequence(settings.seed, spawn_key=(turn,)).generate_state(1, np.uint32)[0])
        self.notes = self.unread = ()
        prompt = self.prompt(text)
        self.notes = self.unread = tuple(self._notes_on(prompt))
        tokens = self.engine.generate(
            prompt.ids,
            max_tokens=settings.max_tokens,
            sampling=Sampling(settings.temperature, settings.top_k, settings.top_p),
            seed=seed,
        )
        answer: list[int] = []
        is_complete = False
        decoder = AnswerDecoder(self.tokenizer)
        try:
            for token in tokens:
                answer.append(token)
                yield from (piece.text for piece in decoder.feed(token))
            yield from (piece.text for piece in decoder.finish())
            is_complete = True
            if len(answer) == answer_limit(self._context, len(prompt.ids), settings.max_tokens):
                is_full = len(answer) < settings.max_tokens
                why = f"the context of {self._context:,} tokens is full" if is_full else "the limit that is set"
                self.notes += (f"the answer was stopped at {several(len(answer), 'token')}: {why}",)
        finally:
            if (answer or is_complete) and not self.is_raw:
                content = parse_answer(self.tokenizer, answer)
                self.turns = (*self.turns, Message("user", text), Message("assistant", content))

    @property
    def _context(self) -> int:
        return self.engine.model.config.sequence_len

    def _notes_on(self, prompt: FittedPrompt) -> Iterator[str]:
        """Yield a sentence about each kind of text that is not in the prompt."""
        why = f"the context of {self._context:,} tokens has no room for more"
        if prompt.dropped_messages:
            yield f"the model did not read the first {several(prompt.dropped_messages, 'message')} of this chat: {why}"
        if prompt.dropped_tokens:
            what = "your message and the system prompt" if self.system else "your message"
            yield f"the model did not read the first {several(prompt.dropped_tokens, 'token')} of {what}: {why}"
