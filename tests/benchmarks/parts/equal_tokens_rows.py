"""The rows of `equal_tokens.py`: our tokenizer and our packed rows, written to a folder for all its processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from parts.equal_tokens_run import HELD_OUT_FILE, ROWS_FILE, Ints

from nanochat.data.documents import DocumentStream, single_pass
from nanochat.data.loaders.document_rows import DocumentRows
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.stages.suites.held_out_text import held_out_batches
from nanochat.tokenizer import bpe

TOKENIZER_CHARS = 20_000_000


def write_rows(
    source: SourceSpec, folder: Path, *, rows: int, sequence_len: int, vocab_size: int, validation_tokens: int
) -> int:
    """Write training rows, held-out rows and the bytes of each token. Return the size of the vocabulary.

    A tokenizer that is in the folder is used again, and so are training rows, if there are enough of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(source, folder, vocab_size)
    path = folder / ROWS_FILE
    if not path.exists() or len(np.load(path, mmap_mode="r")) < rows:
        np.save(path, _training_rows(source, tokenizer, folder, rows, sequence_len))
    batches = held_out_batches(
        source,
        "validation",
        tokenizer,
        sequence_len=sequence_len,
        max_tokens=validation_tokens,
        rows_per_batch=1,
        base=folder,
    )
    np.savez(
        folder / HELD_OUT_FILE,
        inputs=np.concatenate([batch.inputs for batch in batches]),
        targets=np.concatenate([batch.targets for batch in batches]),
        token_bytes=tokenizer.token_bytes,
    )
    return tokenizer.vocab_size


def _tokenizer(source: SourceSpec, base: Path, vocab_size: int) -> bpe.Tokenizer:
    folder = base / "tokenizer"
    if not folder.exists():
        texts = single_pass(source, "train", base=base)
        trained = bpe.train(texts, vocab_size=vocab_size, max_chars=TOKENIZER_CHARS, max_document_chars=10_000)
        trained.save(folder)
    return bpe.Tokenizer.load(folder)


def _training_rows(source: SourceSpec, tokenizer: bpe.Tokenizer, base: Path, count: int, sequence_len: int) -> Ints:
    """Return the first rows of pretraining on the source, (count, T + 1), and print how often they repeat the text."""
    loader = DocumentRows(
        [(DocumentStream(source, "train", base=base), 1.0)],
        tokenizer,
        sequence_len=sequence_len,
        buffer_documents=1000,
        long_documents="keep",
    )
    rows = np.empty((count, sequence_len + 1), dtype=np.int32)
    epoch_rows: int | None = None
    for i in range(count):
        row = loader.next_row()
        rows[i, :-1], rows[i, -1] = row.inputs, row.targets[-1]
        if epoch_rows is None and loader.state().epoch > 0:
            epoch_rows = i
    epochs = f"{count / epoch_rows:.1f} epochs of the text" if epoch_rows else "less than an epoch of the text"
    print(f"{count:,} rows of {sequence_len:,} tokens: {epochs}", flush=True)
    return rows
