"""Models, a tokenizer and a reference that the tests of evaluations share."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest

from nanochat.evals.continuations import Continuation
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.layers import Cache
from nanochat.model.ragged.ragged_rows import Ragged
from nanochat.tokenizer import bpe


@pytest.fixture(scope="session")
def tokenizer() -> bpe.Tokenizer:
    """A tokenizer in which a digit or an ASCII letter by itself is one token."""
    return bpe.train(["the cat sat on the mat ABCD 0123456789"], vocab_size=320, max_chars=999, max_document_chars=999)


class TableModel:
    """A model whose logits depend on the last token alone: `rows(tokens (N,)) -> (N, V)`.

    A hidden state is the number of a token.
    """

    def __init__(self, rows: Callable[[np.ndarray], np.ndarray], *, vocab_size: int, sequence_len: int = 512) -> None:
        self.rows = rows
        self.config = GPTConfig(
            sequence_len=sequence_len, vocab_size=vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=8
        )

    def hidden(self, idx: mx.array, cache: Cache | None = None) -> mx.array:
        return idx.astype(mx.float32)[..., None]

    def hidden_ragged(self, rows: Ragged) -> mx.array:
        return rows.tokens[0].astype(mx.float32)[:, None]

    def logits(self, hidden: mx.array) -> mx.array:
        tokens = np.array(hidden[..., 0]).astype(int)
        return mx.array(self.rows(tokens.reshape(-1)).reshape(*tokens.shape, -1).astype(np.float32))

    def target_logprobs(self, hidden: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        logits, wanted = np.array(self.logits(hidden), dtype=np.float64), np.array(targets)
        chosen = np.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        logprobs = chosen - np.log(np.exp(logits).sum(axis=-1))
        return mx.array(logprobs.astype(np.float32)), mx.array(logits.argmax(axis=-1) == wanted)


@pytest.fixture
def table_model() -> type[TableModel]:
    return TableModel


class Oracle:
    """A model that knows the next token after each prompt: `answers[prompt]`. A hidden state is that token's number."""

    def __init__(self, answers: dict[tuple[int, ...], int], vocab_size: int) -> None:
        self.answers, self.vocab_size = answers, vocab_size
        self.config = GPTConfig(sequence_len=1024, vocab_size=vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=8)

    def hidden(self, idx: mx.array, cache: Cache | None = None) -> mx.array:
        rows = [[self.answers.get(tuple(row[: i + 1]), 0) for i in range(len(row))] for row in np.array(idx).tolist()]
        return mx.array(rows, dtype=mx.float32)[..., None]

    def logits(self, hidden: mx.array) -> mx.array:
        return (mx.arange(self.vocab_size) == hidden).astype(mx.float32)


@pytest.fixture
def oracle() -> type[Oracle]:
    return Oracle


@pytest.fixture
def reference_score() -> Callable[..., tuple[float, bool]]:
    """A function that scores a continuation in float64 from the full logits of its row."""

    def score(model: GPT, continuation: Continuation) -> tuple[float, bool]:
        tokens, scored = continuation.tokens, range(continuation.start, len(continuation.tokens))
        logits = np.array(model(mx.array([list(tokens)]))[0], dtype=np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        is_greedy = all(int(logits[j - 1].argmax()) == tokens[j] for j in scored)
        return sum(logprobs[j - 1, tokens[j]] for j in scored), is_greedy

    return score
