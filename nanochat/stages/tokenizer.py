"""The tokenizer stage: trains on a source's training documents and measures compression on its held-out documents."""

from __future__ import annotations

import time
from collections.abc import Iterator

from nanochat.data.documents import single_pass
from nanochat.plan.specs.job import Job
from nanochat.plan.specs.training import TokenizerSpec
from nanochat.plurals import several
from nanochat.stages.process.context import StageContext, StageResult
from nanochat.tokenizer import bpe

HELD_OUT_CHARS = 1_000_000
"""Compression is measured on about this much held-out text."""
PROGRESS_DOCUMENTS = 200


def run(job: Job, context: StageContext) -> StageResult:
    """Train a tokenizer; write `out/tokenizer.model`; return the metrics.

    Metrics: `vocab_size` (pieces, including special tokens), `bytes_per_token` on held-out documents.
    """
    spec = job.spec
    assert isinstance(spec, TokenizerSpec), f"tokenizer got the job of {spec.stage}"
    context.restore_progress(None)  # left by a killed attempt: this stage always starts over
    began = time.monotonic()
    tokenizer = bpe.train(
        _training_texts(spec, context),
        vocab_size=spec.vocab_size,
        max_chars=spec.max_chars,
        max_document_chars=spec.max_document_chars,
    )
    seconds = time.monotonic() - began
    tokenizer.save(context.out)
    if tokenizer.vocab_size < spec.vocab_size:
        context.notify_user(
            f"the text is only enough for a vocabulary of {tokenizer.vocab_size:,} pieces, not of the "
            f"{spec.vocab_size:,} that `tokenizer.vocab_size` asks for; the model gets as many"
        )
    context.report_progress(0.95, "measuring compression on held-out documents")
    metrics = {
        "vocab_size": float(tokenizer.vocab_size),
        "bytes_per_token": _bytes_per_token(spec, context, tokenizer),
    }
    context.log_metrics(0, {f"tokenizer/{name}": value for name, value in metrics.items()})
    return StageResult(metrics, {"train_seconds": seconds})


def _training_texts(spec: TokenizerSpec, context: StageContext) -> Iterator[str]:
    """Yield the training documents once, and report how much of `max_chars` has been read."""
    chars, count = 0, 0
    texts = single_pass(spec.source, "train", base=context.base, notify=context.notify_user)
    for count, text in enumerate(texts, start=1):
        chars += min(len(text), spec.max_document_chars)
        if count % PROGRESS_DOCUMENTS == 0:
            context.report_progress(
                0.3 * min(1.0, chars / spec.max_chars), f"reading: {several(count, 'document')}, {chars:,} chars"
            )
        yield text
    context.report_progress(0.3, f"training on {several(count, 'document')}, {chars:,} chars")


def _bytes_per_token(spec: TokenizerSpec, context: StageContext, tokenizer: bpe.Tokenizer) -> float:
    byte_count, token_count = 0, 0
    for text in single_pass(spec.source, "validation", base=context.base):
        byte_count += len(text.encode())
        token_count += len(tokenizer.encode(text))
        if byte_count >= HELD_OUT_CHARS:
            break
    return byte_count / token_count
