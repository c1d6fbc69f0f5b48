"""The function of one decoding step: inputs to logits to drawn tokens, for all rows of a batch.

On a GPU it is one compiled function, which returns before its results are computed. Shape letters: B rows of the batch,
empty ones included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from nanochat.inference import sampling_kernels
from nanochat.inference.kv_cache import Buffers, DecodingCache
from nanochat.inference.sampling import SamplingArrays, sample, step_keys
from nanochat.model.device import runs_kernels, runs_on_cpu
from nanochat.model.dispatch import FastGPT


class State(NamedTuple):
    """The arrays that a step reads and updates. Each is (B,) int32."""

    tokens: mx.array
    """The next input of each row."""
    newest: mx.array
    """The input before it, -1 if there is none."""
    positions: mx.array
    counts: mx.array
    """Tokens that were drawn since the prompt."""


class Settings(NamedTuple):
    """How rows are sampled."""

    sampling: SamplingArrays
    keys: mx.array
    """(B, 2) uint32."""


Step = Callable[..., tuple[State, list[Buffers]]]
"""A function of State, Settings, forced tokens (B,) int32 (-1 for none) and buffers, which it may change in place."""


class Steps:
    """The steps of one model. On a GPU each is compiled at its first use for a batch size, and then kept."""

    def __init__(self, model: FastGPT, vocab_size: int, *, weights_change: bool = False) -> None:
        """Only the first `vocab_size` tokens are ever drawn.

        If the `weights_change`, a compiled step takes them as inputs, which costs 20 µs per step for 100 arrays.
        Otherwise they are constants of the step.
        """
        self._model, self._vocab_size, self._weights_change = model, vocab_size, weights_change
        self._steps: dict[tuple[bool, bool], Step] = {}

    def get(self, *, draws: bool, filters: bool) -> Step:
        """Return the step for rows that draw or not, and filter or not, as in `sample`."""
        if (draws, filters) not in self._steps:
            self._steps[draws, filters] = self._make(draws=draws, filters=filters)
        return self._steps[draws, filters]

    def _make(self, *, draws: bool, filters: bool) -> Step:
        step = _compute_at_once if runs_on_cpu() else _compute
        bound = partial(step, self._model, self._vocab_size, draws=draws, filters=filters)
        if runs_on_cpu():  # MLX would run a C++ compiler there, and gain nothing
            return bound
        return mx.compile(bound, inputs=self._model) if self._weights_change else mx.compile(bound)


def _compute(
    model: FastGPT,
    vocab_size: int,
    state: tuple[mx.array, ...],
    settings: tuple[SamplingArrays, mx.array],
    forced: mx.array,
    buffers: list[Buffers],
    *,
    draws: bool,
    filters: bool,
) -> tuple[State, list[Buffers]]:
    """Return the state and the buffers after a step. MLX passes named tuples as plain ones."""
    tokens, newest, positions, counts = state
    sampling, keys = SamplingArrays(*settings[0]), settings[1]
    # Empty rows decode too. They stay within the context, where positions have angles.
    last = model.config.sequence_len - 1
    if runs_kernels():
        inputs, following, counted = sampling_kernels.advance(forced, tokens, positions, counts, last=last)
    else:
        inputs, following, counted = mx.where(forced >= 0, forced, tokens), mx.minimum(positions + 1, last), counts + 1
    cache = DecodingCache([Buffers(*layer) for layer in buffers], positions, newest)
    logits = model.next_logits(inputs, cache, vocab_size=vocab_size)
    if draws and runs_kernels():
        drawn = sampling_kernels.draw(logits, keys, counts, sampling, filters=filters)
    else:
        drawn = sample(logits, step_keys(keys, counts), sampling, draws=draws, filters=filters)
    return State(drawn, inputs, following, counted), cache.buffers


def _compute_at_once(
    model: FastGPT,
    vocab_size: int,
    state: State,
    settings: Settings,
    forced: mx.array,
    buffers: list[Buffers],
    *,
    draws: bool,
    filters: bool,
) -> tuple[State, list[Buffers]]:
    """Do the same on a CPU, with NumPy for the small operations: MLX would take longer to hand them to its thread."""
    tokens, positions, counts = (np.array(x) for x in (state.tokens, state.positions, state.counts))
    inputs = mx.array(np.where(np.array(forced) >= 0, forced, tokens))
    cache = DecodingCache(buffers, state.positions, state.newest)
    logits = model.next_logits(inputs, cache, vocab_size=vocab_size)
    if draws:
        drawn = sample(logits, step_keys(settings.keys, state.counts), settings.sampling, draws=True, filters=filters)
    else:
        drawn = mx.array(np.argmax(np.array(logits, copy=False), axis=-1).astype(np.int32))
    following = np.minimum(positions + 1, model.config.sequence_len - 1)
    return State(drawn, inputs, mx.array(following), mx.array(counts + 1)), cache.buffers
