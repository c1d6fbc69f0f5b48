"""Decodes the rows of a batch, one token per row and step; rows join and leave between steps.

`submit` starts a step and returns its tokens before they are computed. The next step can be submitted before they are
read, because it takes them on the device. Not here: what a step computes (`decoding_step`), what tokens mean, when rows
end, which tokens are forced (`engine`).

Shape letters: B rows of the batch, empty ones included, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import mlx.core as mx

from nanochat.inference.batch_sizes import GPU_PROMPT_TOKENS, PROMPT_CHUNK_TOKENS, PROMPT_TOKENS, decoding_rows
from nanochat.inference.decoding_step import Settings, State, Step, Steps
from nanochat.inference.generation import Request
from nanochat.inference.kv_cache import Buffers, PromptCache, PromptCopy, empty_buffers, from_prompts, grow, take_rows
from nanochat.inference.sampling import Sampling, sampling_arrays
from nanochat.model.device import runs_on_cpu
from nanochat.model.dispatch import FastGPT


class Decoder:
    """The batch of one model. A slot is the index of a row in the batch."""

    def __init__(self, model: FastGPT, steps: Steps) -> None:
        """Decode with a model and its steps. The model's weights must not change while this object is used."""
        self._model, self._steps = model, steps
        self._rows: list[Request | None] = []
        self._lengths: list[int] = []
        """Positions of each slot when the steps submitted so far are done; 0 if it is free."""
        self._buffers: list[Buffers] = []
        self._state = _no_rows()
        # `add` chooses these for its rows, before the first step.
        self._settings: Settings
        self._no_override: mx.array
        self._step: Step

    def add(self, rows: Sequence[Request]) -> list[int]:
        """Read the prompts of new rows, all but their last tokens, and return their slots, in the order of the rows.

        Equal prompts are read once.
        """
        slots = self._make_room(len(rows))
        lengths = [len(row.prompt) - 1 for row in rows]
        for slot, row, length in zip(slots, rows, lengths, strict=True):
            self._rows[slot], self._lengths[slot] = row, length
        self._reserve(max(lengths) + 1)
        shared: dict[tuple[int, ...], list[int]] = {}
        for slot, row in zip(slots, rows, strict=True):
            shared.setdefault(tuple(row.prompt[:-1]), []).append(slot)
        prompts = list(shared)
        for group in map(sorted, _group_prompts([len(prompt) for prompt in prompts])):
            self._read({prompts[i]: shared[prompts[i]] for i in group})
        tokens = [row.prompt[-1] for row in rows]
        newest = [row.prompt[-2] if len(row.prompt) > 1 else -1 for row in rows]
        self._state = State(*map(partial(_put, slots), self._state, (tokens, newest, lengths, [0] * len(rows))))
        self._collect_settings()
        return slots

    def submit(self, forced: Mapping[int, int]) -> mx.array:
        """Start a step; return the token that follows in each row, (B,) int32, which is not computed yet.

        Args:
            forced: slot -> token that the row reads now instead of the one that the previous step drew.
        """
        self._lengths = [length + 1 if row else 0 for row, length in zip(self._rows, self._lengths, strict=True)]
        self._reserve(max(self._lengths))
        override = self._no_override
        if forced:
            override = mx.array([forced.get(slot, -1) for slot in range(len(self._rows))], dtype=mx.int32)
        state, buffers = self._step(self._state, self._settings, override, self._buffers)
        self._state, self._buffers = State(*state), [Buffers(*layer) for layer in buffers]
        mx.async_eval(self._state)  # type: ignore[no-untyped-call]  # the tokens depend on all buffers
        return self._state.tokens

    def remove(self, slots: Sequence[int]) -> list[int | None]:
        """Free slots, and shrink the batch if possible. Return each old slot's new number, or None if it is free."""
        for slot in slots:
            self._rows[slot], self._lengths[slot] = None, 0
        kept = [slot for slot, row in enumerate(self._rows) if row is not None]
        if decoding_rows(len(kept)) >= len(self._rows):
            return [None if row is None else slot for slot, row in enumerate(self._rows)]
        return self._keep(kept)

    def _keep(self, kept: list[int]) -> list[int | None]:
        """Shrink the batch to these slots, and to a size that decodes them; return the new numbers of all slots."""
        old = len(self._rows)
        size = decoding_rows(len(kept)) if kept else 0
        free = [slot for slot in range(old) if slot not in set(kept)]
        order = sorted([*kept, *free[: size - len(kept)]])
        self._rows, self._lengths = [self._rows[slot] for slot in order], [self._lengths[slot] for slot in order]
        if order:
            self._buffers = [Buffers(*(take_rows(x, order) for x in layer)) for layer in self._buffers]
            self._state = State(*(take_rows(x, order) for x in self._state))
        else:
            self._buffers, self._state = [], _no_rows()
        self._collect_settings()
        new = {slot: number for number, slot in enumerate(order)}
        return [new[slot] if slot in new and self._rows[new[slot]] is not None else None for slot in range(old)]

    def _make_room(self, count: int) -> list[int]:
        """Return `count` free slots. Add rows to the batch if it has too few."""
        used = sum(row is not None for row in self._rows)
        missing = max(0, decoding_rows(used + count) - len(self._rows))
        if missing:
            positions = max(1, self._positions())
            added = empty_buffers(self._model.config, missing, positions, self._model.compute_dtype)
            pairs = zip(self._buffers, added, strict=True) if self._buffers else ()
            self._buffers = [Buffers(*map(_append, old, new)) for old, new in pairs] or added
            self._state = State(*(_append(x, mx.zeros((missing,), mx.int32)) for x in self._state))
            self._rows += [None] * missing
            self._lengths += [0] * missing
        return [slot for slot, row in enumerate(self._rows) if row is None][:count]

    def _positions(self) -> int:
        """Return the positions that the largest buffers hold, 0 without buffers."""
        return max((buffer.keys.shape[2] for buffer in self._buffers), default=0)

    def _reserve(self, positions: int) -> None:
        """Make the buffers large enough for rows of `positions` positions."""
        if positions > self._positions():
            self._buffers = grow(self._model.config, self._buffers, positions)

    def _read(self, prompts: Mapping[tuple[int, ...], Sequence[int]]) -> None:
        """Read prompts in causal chunks, padded on the right to the longest, and put each into its slots."""
        rows, longest = len(prompts), max(len(prompt) for prompt in prompts)
        if not runs_on_cpu():
            rows, longest = _padded_shape(rows, longest, self._model.config.sequence_len)
        padded = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        idx = mx.array([*padded, *[[0] * longest] * (rows - len(prompts))], dtype=mx.int32)
        cache = PromptCache(self._model.config)
        for start in range(0, longest, PROMPT_CHUNK_TOKENS):
            mx.eval([(layer.keys, layer.values) for layer in cache.layers])  # frees the previous chunk's activations
            self._model.hidden(idx[:, start : start + PROMPT_CHUNK_TOKENS], cache)
        copies = [PromptCopy(i, slot, len(p)) for i, (p, slots) in enumerate(prompts.items()) for slot in slots]
        self._buffers = from_prompts(cache, self._buffers, copies)
        mx.eval(self._buffers)  # frees the cache before other prompts are read

    def _collect_settings(self) -> None:
        """Collect the sampling settings of the present rows in arrays, and choose the step function that they need."""
        self._no_override = mx.full((len(self._rows),), -1, mx.int32)
        mx.eval(self._no_override)
        samplings = [Sampling(temperature=0.0) if row is None else row.sampling for row in self._rows]
        keys = [(0, 0) if row is None else row.key for row in self._rows]
        self._settings = Settings(sampling_arrays(samplings), mx.array(keys, dtype=mx.uint32).reshape(-1, 2))
        draws, filters = any(s.draws for s in samplings), any(s.filters for s in samplings)
        self._step = self._steps.get(draws=draws, filters=filters)


def _group_prompts(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of prompts that are read together: of similar length, at most PROMPT_TOKENS tokens in all.

    Those without a token are left out.
    """
    ordered = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i], reverse=True)
    while ordered:
        count = max(1, PROMPT_TOKENS // lengths[ordered[0]])
        yield ordered[:count]
        ordered = ordered[count:]


def _padded_shape(rows: int, length: int, context: int) -> tuple[int, int]:
    """Return a larger shape for prompts on a GPU, where each new shape of attention takes time to prepare."""
    length = min(context, -(-length // GPU_PROMPT_TOKENS) * GPU_PROMPT_TOKENS)
    return max(rows, min(decoding_rows(rows), PROMPT_TOKENS // length)), length


def _no_rows() -> State:
    return State(*(mx.zeros((0,), mx.int32) for _ in range(4)))


def _append(old: mx.array, new: mx.array) -> mx.array:
    return mx.concatenate([old, new])


def _put(slots: Sequence[int], array: mx.array, values: Sequence[int]) -> mx.array:
    """Return a copy of an array with new values in some slots: the caller of `submit` may still hold the old one."""
    new = dict(zip(slots, values, strict=True))
    all_values, is_new = zip(*((new.get(slot, 0), slot in new) for slot in range(array.size)), strict=True)
    return mx.where(mx.array(is_new), mx.array(all_values, dtype=array.dtype), array)
