"""Rows of held-out text for measuring bits per byte: every token once, in the order of the documents.

Training rows are packed by best fit; these rows are not. Best fit may drop the ends of long documents, so a score
over packed rows would not represent the whole text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nanochat.data.documents import single_pass
from nanochat.data.loaders.batches import Batch
from nanochat.data.source_splits import Split
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.model.low_memory.loss import IGNORED
from nanochat.tokenizer.bpe import Tokenizer

_CHUNK_DOCUMENTS = 64

Ints = npt.NDArray[np.int32]


def held_out_batches(
    source: SourceSpec,
    split: Split,
    tokenizer: Tokenizer,
    *,
    sequence_len: int,
    max_tokens: int,
    rows_per_batch: int,
    base: Path,
) -> list[Batch]:
    """Return the first `max_tokens` tokens of one split of a source, rounded up to whole rows, or all its tokens.

    Documents are joined, each after a BOS, and cut into rows of `sequence_len` targets. The rows do not depend on
    `rows_per_batch`.
    """
    rows = -(-max_tokens // sequence_len)
    tokens = _first_tokens(single_pass(source, split, base=base), tokenizer, rows * sequence_len + 1)
    inputs, targets = _cut_rows(tokens, sequence_len, padding=tokenizer.bos_id)
    starts = range(0, len(inputs), rows_per_batch)
    return [Batch(inputs[i : i + rows_per_batch], targets[i : i + rows_per_batch]) for i in starts]


def _first_tokens(texts: Iterable[str], tokenizer: Tokenizer, count: int) -> Ints:
    bos = np.array([tokenizer.bos_id], dtype=np.int32)
    pieces: list[Ints] = []
    total = 0
    for chunk in _chunks(iter(texts)):
        for ids in tokenizer.encode_batch(chunk):
            pieces += [bos, ids]
            total += 1 + len(ids)
        if total >= count:
            break
    return np.concatenate(pieces)[:count] if pieces else np.zeros(0, np.int32)


def _chunks(texts: Iterator[str]) -> Iterator[Sequence[str]]:
    while chunk := list(itertools.islice(texts, _CHUNK_DOCUMENTS)):
        yield chunk


def _cut_rows(tokens: Ints, sequence_len: int, *, padding: int) -> tuple[Ints, Ints]:
    """Return inputs and targets (rows, T). The last row is filled with `padding`, and its targets with -1."""
    rows = -(-(len(tokens) - 1) // sequence_len)
    inputs = np.full(rows * sequence_len, padding, dtype=np.int32)
    targets = np.full(rows * sequence_len, IGNORED, dtype=np.int32)
    inputs[: len(tokens) - 1] = tokens[:-1]
    targets[: len(tokens) - 1] = tokens[1:]
    return inputs.reshape(rows, sequence_len), targets.reshape(rows, sequence_len)
