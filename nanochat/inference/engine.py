"""Generates text: one causal prefill, then one token per row and step, with a calculator that the model may call.

`Engine.generate` streams the answer to one prompt, and `Engine.complete` completes many prompts. Rows leave the batch
when they end. Not here: how prompts of different lengths share a batch (`kv_cache`), chat turns (`chat_session`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from nanochat.errors import RecipeError
from nanochat.inference.batch_sizes import GENERATED_ROWS
from nanochat.inference.kv_cache import KVCache, prefill
from nanochat.inference.sampling import check_settings, row_keys, sample, step_keys
from nanochat.model.dispatch import FastGPT
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tools.calculator import calculate


@dataclass(frozen=True)
class _Sampling:
    temperature: float
    top_k: int | None
    keys: mx.array
    """(rows, 2), by row number."""
    use_calculator: bool


class _Markers:
    """The special tokens that the engine acts on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ends = frozenset({tokenizer.special("<|assistant_end|>"), tokenizer.bos_id})
        self.python_start = tokenizer.special("<|python_start|>")
        self.python_end = tokenizer.special("<|python_end|>")
        self.output_start = tokenizer.special("<|output_start|>")
        self.output_end = tokenizer.special("<|output_end|>")


class _Row:
    """One unfinished completion."""

    def __init__(self, number: int, limit: int) -> None:
        self.number = number
        self.limit = limit
        self.forced: deque[int] = deque()
        """Tokens of the calculator's output that come next, whatever the model samples."""
        self.written: list[int] = []
        self.code: list[int] | None = None
        """The tokens since the Python start marker; None outside of Python code."""
        self.is_done = False

    def write(self, sampled: int, ends: frozenset[int]) -> int | None:
        """Return the token that the row writes now, or None if it ends instead."""
        is_forced = bool(self.forced)
        token = self.forced.popleft() if is_forced else sampled
        if token in ends and not is_forced:
            self.is_done = True
            return None
        self.written.append(token)
        self.is_done = len(self.written) >= self.limit
        return token


def prompt_limit(context: int, max_tokens: int) -> int:
    """Return how many tokens of a context a prompt may fill: all but `max_tokens`, or half if that is more."""
    return context - min(max_tokens, context // 2)


def answer_limit(context: int, prompt_tokens: int, max_tokens: int) -> int:
    """Return how many tokens an answer may have: `max_tokens`, or what is left of the context if that is less."""
    return min(max_tokens, context - prompt_tokens)


class Engine:
    """Generates with one model and its tokenizer. It keeps no state between calls."""

    def __init__(self, model: FastGPT, tokenizer: Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._markers = _Markers(tokenizer)

    def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 0,
    ) -> Iterator[int]:
        """Yield the tokens that continue a prompt, those of the calculator's output included.

        The answer ends before `<|assistant_end|>` or BOS (neither is returned), after `max_tokens` tokens, or when
        prompt and answer fill the model's context. The same seed gives the same tokens.

        Raises:
            RecipeError: the prompt is empty or leaves no room in the context, or a setting is invalid.
        """
        self._check_request([prompt_ids], max_tokens)
        check_settings(temperature=temperature, top_k=top_k)
        row = _Row(0, answer_limit(self.model.config.sequence_len, len(prompt_ids), max_tokens))
        hidden, cache = prefill(self.model, [prompt_ids], room=row.limit)
        sampling = _Sampling(temperature, top_k, row_keys(seed, [0]), use_calculator=True)
        shown = 0
        for _ in self._decode([row], hidden, cache, sampling):
            yield from row.written[shown:]
            shown = len(row.written)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        seed: int = 0,
        use_calculator: bool = True,
        max_rows: int = GENERATED_ROWS,
        on_finished: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """Return one completion for each prompt, which ends as in `generate`.

        Prompts of similar length share a batch of at most `max_rows`. The longest go first, so that a lack of memory
        shows at once. Prompt i samples with the key of row i, so that batching changes no draw.

        Args:
            on_finished: called with the number of finished completions whenever one ends.

        Raises:
            RecipeError: as in `generate`.
        """
        self._check_request(prompts, max_tokens)
        check_settings(temperature=temperature, top_k=top_k)
        keys = row_keys(seed, range(len(prompts))) if prompts else mx.zeros((0, 2), dtype=mx.uint32)
        sampling = _Sampling(temperature, top_k, keys, use_calculator)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        completions: dict[int, list[int]] = {}
        for start in range(0, len(order), max_rows):
            batch = order[start : start + max_rows]
            for row in self._complete_batch(batch, prompts, max_tokens, sampling):
                completions[row.number] = row.written
                if on_finished is not None:
                    on_finished(len(completions))
        return [completions[i] for i in range(len(prompts))]

    def _complete_batch(
        self, numbers: Sequence[int], prompts: Sequence[Sequence[int]], max_tokens: int, sampling: _Sampling
    ) -> Iterator[_Row]:
        """Yield the rows of one batch as they end."""
        context = self.model.config.sequence_len
        rows = [_Row(n, answer_limit(context, len(prompts[n]), max_tokens)) for n in numbers]
        hidden, cache = prefill(self.model, [prompts[n] for n in numbers], room=max(row.limit for row in rows))
        waiting = rows
        for _ in self._decode(rows, hidden, cache, sampling):
            yield from (row for row in waiting if row.is_done)
            waiting = [row for row in waiting if not row.is_done]

    def _decode(self, rows: Sequence[_Row], hidden: mx.array, cache: KVCache, sampling: _Sampling) -> Iterator[None]:
        """Write one token to each unfinished row, then yield, until every row is done.

        The rows are in the order of the cache's rows; `hidden` (B, C) is that of the last position of their prompts.
        """
        active = list(rows)
        while True:
            for row, sampled in zip(active, self._sample(active, hidden, sampling), strict=True):
                token = row.write(sampled, self._markers.ends)
                if token is not None and sampling.use_calculator:
                    self._run_calculator(row, token)
            yield
            kept = [i for i, row in enumerate(active) if not row.is_done]
            if not kept:
                return
            if len(kept) < len(active):
                active = [active[i] for i in kept]
                cache = cache.take(kept)
            hidden = self.model.hidden(mx.array([[row.written[-1]] for row in active]), cache)[:, -1]

    def _sample(self, rows: Sequence[_Row], hidden: mx.array, sampling: _Sampling) -> list[int]:
        if all(row.forced for row in rows):
            return [0] * len(rows)
        # A tokenizer trained on little text may have fewer tokens than the model has logits. The others mean nothing.
        logits = self.model.logits(hidden)[:, : self.tokenizer.vocab_size]
        keys = step_keys(sampling.keys[mx.array([row.number for row in rows])], [len(row.written) for row in rows])
        tokens = sample(logits, keys, temperature=sampling.temperature, top_k=sampling.top_k)
        return [int(token) for token in np.array(tokens)]

    def _run_calculator(self, row: _Row, token: int) -> None:
        """Collect the tokens between the Python markers. After the last one, force the result if there is one."""
        marks = self._markers
        if token == marks.python_start:
            row.code = []
        elif token == marks.python_end and row.code is not None:
            result = calculate(self.tokenizer.decode(row.code))
            row.code = None
            if result is not None:
                row.forced.extend([marks.output_start, *self.tokenizer.encode(result), marks.output_end])
        elif row.code is not None:
            row.code.append(token)

    def _check_request(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        if max_tokens < 1:
            raise RecipeError(f"max_tokens is {max_tokens}: give at least 1")
        context = self.model.config.sequence_len
        for prompt in prompts:
            if not prompt:
                raise RecipeError("an empty prompt cannot be continued: begin with BOS")
            if len(prompt) >= context:
                raise RecipeError(
                    f"the prompt has {len(prompt)} tokens, which fills the model's context of {context}: shorten it"
                )
