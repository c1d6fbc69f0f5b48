"""The interface of a model for inference and evaluation, and the prefill that reads prompts into a cache.

Shape letters: B batch, T time, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import mlx.core as mx

from nanochat.inference.batch_sizes import PROMPT_CHUNK_TOKENS
from nanochat.inference.kv_cache import KVCache, pad_left
from nanochat.model.config import GPTConfig
from nanochat.model.ragged.rows import Ragged


class CausalModel(Protocol):
    """The part of `nanochat.model.gpt.GPT` that inference and evaluations use. Tests implement it in fakes."""

    @property
    def config(self) -> GPTConfig:
        """The model's shape."""

    @property
    def hidden(self) -> Callable[..., mx.array]:
        """`hidden(idx (B, T), cache=None)` -> (B, T, C), the final normed hidden states of the new positions."""

    @property
    def hidden_ragged(self) -> Callable[[Ragged], mx.array]:
        """`hidden_ragged(rows)` -> (N, C), the same for rows without padding and without a cache."""

    @property
    def logits(self) -> Callable[[mx.array], mx.array]:
        """`logits(hidden (..., C))` -> (..., V) float32, after the softcap."""

    @property
    def target_logprobs(self) -> Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]:
        """`target_logprobs(hidden (N, C), targets (N,))` -> log-probabilities, and whether each is the likeliest."""


def prefill(model: CausalModel, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[mx.array, KVCache]:
    """Read prompts into a cache; return their last hidden states (B, C) and the cache, with `room` free positions.

    Shorter prompts are padded on the left, and the cache hides the padding, so that new tokens have the same position
    in every row. The model reads the prompts in causal chunks.
    """
    lengths = [len(prompt) for prompt in prompts]
    idx = pad_left(prompts, pad_id=prompts[0][0])
    cache = KVCache(model.config, capacity=idx.shape[1] + room, lengths=lengths)
    hidden = model.hidden(idx[:, :PROMPT_CHUNK_TOKENS], cache)
    for start in range(PROMPT_CHUNK_TOKENS, idx.shape[1], PROMPT_CHUNK_TOKENS):
        mx.eval(hidden)  # frees the activations of the previous chunk
        hidden = model.hidden(idx[:, start : start + PROMPT_CHUNK_TOKENS], cache)
    return hidden[:, -1], cache
