"""A small tokenizer and a scripted model for the tests of generation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest

from nanochat.model.config import GPTConfig
from nanochat.model.device import runs_on_cpu
from nanochat.model.layers import Cache
from nanochat.tokenizer import bpe


@pytest.fixture(scope="session")
def tokenizer() -> bpe.Tokenizer:
    """A tokenizer of special tokens, the 256 bytes, and a few longer tokens."""
    return bpe.train(["abc abd 0123456789 +-*/"], vocab_size=300, max_chars=1000, max_document_chars=1000)


@dataclass
class ScriptedModel:
    """A model whose next token depends on the last token alone. It records its inputs.

    A hidden state is the number of the next token.
    """

    vocab_size: int
    successors: dict[int, int]
    sequence_len: int = 64
    compute_dtype: mx.Dtype = mx.float32
    fed: list[list[list[int]]] = field(default_factory=list)

    @property
    def config(self) -> GPTConfig:
        return GPTConfig(
            sequence_len=self.sequence_len, vocab_size=self.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=8
        )

    def hidden(self, idx: mx.array, cache: Cache | None = None) -> mx.array:
        rows = np.array(idx).tolist()
        self.fed.append(rows)
        if cache is not None:
            heads = mx.zeros((*idx.shape[:1], 1, idx.shape[1], 8))
            cache.layers[0].attend(heads, heads, heads)
            cache.advance(idx)
        following = [[self.successors.get(token, 0) for token in row] for row in rows]
        return mx.array(following, dtype=mx.float32)[..., None]

    def next_logits(self, tokens: mx.array, cache: Cache, *, vocab_size: int) -> mx.array:
        hidden = self.hidden(tokens[:, None], cache)[:, -1]
        return 20.0 * (mx.arange(vocab_size) == hidden).astype(mx.float32)


@pytest.fixture
def chain(tokenizer: bpe.Tokenizer) -> Callable[..., ScriptedModel]:
    """A function that builds a model in which each token of a list is followed by the next one.

    Not for a GPU, where a step is compiled and no Python runs in it.
    """
    if not runs_on_cpu():
        pytest.skip("a scripted model cannot be compiled")

    def build(*chains: list[int], sequence_len: int = 64) -> ScriptedModel:
        successors = {a: b for tokens in chains for a, b in itertools.pairwise(tokens)}
        return ScriptedModel(tokenizer.vocab_size, successors, sequence_len)

    return build
