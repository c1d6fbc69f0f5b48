"""The model as inference and evaluation see it: hidden states of new positions, then logits of the wanted ones.

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
    """What `nanochat.model.gpt.GPT` offers, and what a stand-in in a test must."""

    @property
    def config(self) -> GPTConfig:
        """The model's shape."""

    @property
    def hidden(self) -> Callable[..., mx.array]:
        """`hidden(idx (B, T), cache=None)` -> (B, T, C), the final normed hidden states of the new positions."""

    @property
    def hidden_ragged(self) -> Callable[[Ragged], mx.array]:
        """`hidden_ragged(rows)` -> (N, C), the same of rows without padding, which end with the forward."""

    @property
    def logits(self) -> Callable[[mx.array], mx.array]:
        """`logits(hidden (..., C))` -> (..., V) float32, after the softcap."""

    @property
    def target_logprobs(self) -> Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]:
        """`target_logprobs(hidden (N, C), targets (N,))` -> log-probabilities, and whether each is the likeliest."""


def prefill(model: CausalModel, prompts: Sequence[Sequence[int]], *, room: int) -> tuple[mx.array, KVCache]:
    """Read prompts that may differ in length; return their last hidden states (B, C) and a cache with `room` positions.

    Shorter prompts are padded on the left, and the cache hides the padding: what follows stands at the same position of
    every row. Prompts are fed in causal chunks.
    """
    lengths = [len(prompt) for prompt in prompts]
    idx = pad_left(prompts, pad_id=prompts[0][0])
    cache = KVCache(model.config, capacity=idx.shape[1] + room, lengths=lengths)
    hidden = model.hidden(idx[:, :PROMPT_CHUNK_TOKENS], cache)
    for start in range(PROMPT_CHUNK_TOKENS, idx.shape[1], PROMPT_CHUNK_TOKENS):
        mx.eval(hidden)  # of the chunk before: frees its activations
        hidden = model.hidden(idx[:, start : start + PROMPT_CHUNK_TOKENS], cache)
    return hidden[:, -1], cache
