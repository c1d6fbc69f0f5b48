"""Streams the text of answers to one request out of the generator's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nanochat.inference.answer_text import AnswerDecoder, StopStrings
from nanochat.inference.generation import Request
from nanochat.serve.generator import Generator, Job, Tokens
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat_format import Part, PartKind


@dataclass(frozen=True)
class Delta:
    """Some more of one answer."""

    choice: int
    """Number of the answer, if several were asked for."""
    kind: PartKind
    text: str
    """May be empty."""
    tokens: int = 0
    """How many tokens were generated since the last count."""
    ended: Literal["stop", "length"] | None = None


async def stream_answers(
    generator: Generator, tokenizer: Tokenizer, requests: Sequence[Request], stop: Sequence[str]
) -> AsyncGenerator[Delta]:
    """Yield the answers to requests as they are generated, until all have ended.

    If the caller stops early, as when a client disconnects, the answers end and free their places.

    Raises:
        BusyError: too many requests wait.
        RecipeError: a request cannot be answered.
    """
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[tuple[int, Tokens | Exception]] = asyncio.Queue()
    jobs: list[Job] = []
    try:
        for number, request in enumerate(requests):
            job = Job(request, _deliver_to(loop, inbox, number))
            generator.submit(job)
            jobs.append(job)
        answers = [_Answer(number, tokenizer, stop) for number in range(len(jobs))]
        while any(answer.ended is None for answer in answers):
            number, delivery = await inbox.get()
            if isinstance(delivery, Exception):
                raise delivery
            answer = answers[number]
            if answer.ended is not None:
                continue
            for delta in answer.receive(delivery):
                yield delta
            if answer.ended is not None:
                jobs[number].is_cancelled.set()
    finally:
        for job in jobs:
            job.is_cancelled.set()


def _deliver_to(
    loop: asyncio.AbstractEventLoop, inbox: asyncio.Queue[tuple[int, Tokens | Exception]], number: int
) -> Callable[[Tokens | Exception], None]:
    """Return a callback that passes deliveries from the generator's thread to the event loop."""

    def deliver(delivery: Tokens | Exception) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(inbox.put_nowait, (number, delivery))

    return deliver


class _Answer:
    """The text of one answer so far."""

    def __init__(self, number: int, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._number = number
        self._decoder = AnswerDecoder(tokenizer)
        self._stop = StopStrings(stop)
        self._kind: PartKind = "text"
        self.ended: Literal["stop", "length"] | None = None

    def receive(self, tokens: Tokens) -> list[Delta]:
        """Return the pieces that tokens add to the answer. The last one has their number, and why the answer ended."""
        pieces = [piece for token in tokens.ids for piece in self._decoder.feed(token)]
        if tokens.ended is not None:
            pieces += self._decoder.finish()
        deltas = [Delta(self._number, piece.kind, text) for piece in pieces if (text := self._show(piece))]
        if self._stop.is_found:
            self.ended = "stop"
        elif tokens.ended is not None:
            self.ended = tokens.ended
            if rest := self._stop.finish():
                deltas.append(Delta(self._number, self._kind, rest))
        last = deltas.pop() if deltas else Delta(self._number, "text", "")
        return [*deltas, replace(last, tokens=len(tokens.ids), ended=self.ended)]

    def _show(self, piece: Part) -> str:
        if self._stop.is_found:
            return ""
        self._kind = piece.kind
        return self._stop.feed(piece.text)
