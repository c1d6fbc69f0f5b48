"""Generates text in batches.

A `Batch` decodes requests together; they join and leave between steps. `Engine.generate` streams the answer to one
prompt, and `Engine.complete` completes many prompts. Not here: one completion and its calculator (`generation`), keys,
values and compiled steps (`decoder`), chat turns (`chat_session`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from nanochat.errors import RecipeError
from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.inference.decoder import Decoder
from nanochat.inference.decoding_step import Steps
from nanochat.inference.generation import Completion, Markers, Request
from nanochat.inference.sampling import Sampling
from nanochat.model.dispatch import FastGPT
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.chat_format import FittedPrompt


class _SubmittedStep(NamedTuple):
    """A step that the device computes, and the completions that get its tokens."""

    tokens: mx.array
    completions: dict[int, Completion]
    """Slot -> completion."""


class Batch:
    """Completions that are decoded together. The next step is submitted before the tokens of the last one are read."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._decoder = Decoder(engine.model, engine.steps)
        self._completions: dict[int, Completion] = {}
        self._submitted: _SubmittedStep | None = None

    def __len__(self) -> int:
        """Return the number of unfinished completions."""
        return len(self._completions)

    def add(self, requests: Sequence[Request]) -> list[Completion]:
        """Read the prompts of requests and return their completions, which the next steps continue.

        Raises:
            RecipeError: a prompt is empty or leaves no room in the context, or `max_tokens` is below 1.
        """
        for request in requests:
            self._engine.check(request)
        context = self._engine.model.config.sequence_len
        completions = [Completion(r, limit=answer_limit(context, len(r.prompt), r.max_tokens)) for r in requests]
        slots = self._decoder.add(requests)
        self._completions |= dict(zip(slots, completions, strict=True))
        return completions

    def step(self) -> list[Completion]:
        """Add a token to each completion or end it; return those that were continued. At least one is unfinished."""
        step = self._submitted or self._submit()
        is_unfinished = any(len(c.tokens) + 1 < c.limit for c in self._completions.values())
        self._submitted = self._submit() if is_unfinished else None
        drawn = np.array(step.tokens).tolist()
        continued = [(slot, c) for slot, c in step.completions.items() if c.ended is None]
        for slot, completion in continued:
            completion.receive(drawn[slot], self._engine.markers, self._engine.tokenizer)
        self._remove_ended()
        return [completion for _, completion in continued]

    def cancel(self, completion: Completion) -> None:
        """End a completion early and free its place."""
        completion.ended = completion.ended or "stop"
        self._remove_ended()

    def _submit(self) -> _SubmittedStep:
        forced = {slot: c.forced[0] for slot, c in self._completions.items() if c.forced}
        return _SubmittedStep(self._decoder.submit(forced), dict(self._completions))

    def _remove_ended(self) -> None:
        ended = [slot for slot, c in self._completions.items() if c.ended is not None]
        if ended:
            new = self._decoder.remove(ended)
            moved = ((new[slot], c) for slot, c in self._completions.items())
            self._completions = {slot: c for slot, c in moved if slot is not None}
        if not self._completions:
            self._submitted = None


class Engine:
    """Generates with one model and its tokenizer. Between calls it keeps nothing but compiled steps."""

    def __init__(self, model: FastGPT, tokenizer: Tokenizer, *, weights_change: bool = False) -> None:
        """Generate with a model, whose weights may change between calls only if `weights_change`."""
        self.model = model
        self.tokenizer = tokenizer
        # A tokenizer trained on little text may have fewer tokens than the model has logits. The others mean nothing.
        self.steps = Steps(model, tokenizer.vocab_size, weights_change=weights_change)
        self.markers = Markers(tokenizer)

    def generate(
        self, prompt_ids: Sequence[int], *, max_tokens: int, sampling: Sampling | None = None, seed: int = 0
    ) -> Iterator[int]:
        """Yield the tokens that continue a prompt, those of the calculator's output included.

        The answer ends before `<|assistant_end|>` or BOS (neither is returned), after `max_tokens` tokens, or when
        prompt and answer fill the model's context. The same seed gives the same tokens.

        Raises:
            RecipeError: the prompt is empty or leaves no room in the context, or `max_tokens` is below 1.
        """
        batch = Batch(self)
        request = Request(prompt=prompt_ids, max_tokens=max_tokens, sampling=sampling or Sampling(), seed=seed)
        (completion,) = batch.add([request])
        while completion.ended is None:
            shown = len(completion.tokens)
            batch.step()
            yield from completion.tokens[shown:]

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        use_calculator: bool = True,
        max_rows: int = GENERATED_ROWS,
        on_finished: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """Return one completion for each prompt, which ends as in `generate`; without `sampling`, the likeliest one.

        Prompt i samples with the key of row i. `finish` explains the rest.
        """
        chosen = sampling or Sampling(temperature=0.0)
        requests = [
            Request(
                prompt=prompt,
                max_tokens=max_tokens,
                sampling=chosen,
                seed=seed,
                number=number,
                use_calculator=use_calculator,
            )
            for number, prompt in enumerate(prompts)
        ]
        return [completion.tokens for completion in self.finish(requests, max_rows=max_rows, on_finished=on_finished)]

    def finish(
        self,
        requests: Sequence[Request],
        *,
        max_rows: int = GENERATED_ROWS,
        on_finished: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """Return the whole completion of each request, which ends as in `generate`. Their numbers must differ.

        At most `max_rows` are decoded at a time, and new prompts replace those that end. The longest go first, so that
        a lack of memory shows at once. A request samples with the key of its number, so that batching changes no draw.

        Args:
            on_finished: called with the number of finished completions whenever some end.

        Raises:
            RecipeError: as in `generate`.
        """
        for request in requests:
            self.check(request)
        waiting = deque(sorted(requests, key=lambda request: len(request.prompt), reverse=True))
        batch, completions = Batch(self), dict[int, Completion]()
        while waiting or len(batch):
            room = max_rows - len(batch)
            if waiting and room >= max(1, max_rows // 4):  # reading few prompts at a time is slow
                joining = [waiting.popleft() for _ in range(min(room, len(waiting)))]
                completions |= {completion.request.number: completion for completion in batch.add(joining)}
            before = len(batch)
            batch.step()
            if on_finished is not None and len(batch) < before:
                on_finished(len(completions) - len(batch))
        return [completions[request.number] for request in requests]

    def check(self, request: Request) -> None:
        """Raise a RecipeError if the prompt is empty or leaves no room in the context, or `max_tokens` is below 1."""
        if request.max_tokens < 1:
            raise RecipeError(f"max_tokens is {request.max_tokens}: give at least 1")
        context, length = self.model.config.sequence_len, len(request.prompt)
        if not length:
            raise RecipeError("an empty prompt cannot be continued: begin with BOS")
        if length >= context:
            raise RecipeError(
                f"the prompt has {length} tokens, which fills the model's context of {context}: shorten it"
            )


def prompt_limit(context: int, max_tokens: int) -> int:
    """Return how many tokens of a context a prompt may fill: all but `max_tokens`, or half if that is more."""
    return context - min(max_tokens, context // 2)


def fit_text(tokenizer: Tokenizer, text: str, *, max_tokens: int) -> FittedPrompt:
    """Return the prompt that a text is to be continued from: BOS and its last tokens, at most `max_tokens` in all."""
    ids = tokenizer.encode(text)
    dropped = max(0, 1 + len(ids) - max_tokens)
    return FittedPrompt([tokenizer.bos_id, *ids[dropped:]], dropped_tokens=dropped)


def answer_limit(context: int, prompt_tokens: int, max_tokens: int) -> int:
    """Return how many tokens an answer may have: `max_tokens`, or what is left of the context if that is less."""
    return min(max_tokens, context - prompt_tokens)
