"""Peak memory of training a tokenizer, fitted to nine peaks (`tests/plan/test_estimate.py`)."""

from __future__ import annotations

from nanochat.plan.estimate.memory import PROCESS_BYTES

_TEXT_BYTES_PER_CHAR, _INDEX_BYTES_PER_CHAR, _CHARS_OF_NEW_WORDS, _BYTES_PER_PIECE = 6, 9, 12_000_000, 1200


def peak_bytes(chars: int, vocab_size: int) -> int:
    """Return the peak of training a tokenizer: SentencePiece holds the text, and indexes of its words and their pairs.

    New words become rare as a text goes on, so indexes grow most at first.
    """
    indexes = _INDEX_BYTES_PER_CHAR * min(chars, _CHARS_OF_NEW_WORDS) + _BYTES_PER_PIECE * vocab_size
    return PROCESS_BYTES["float32"] + _TEXT_BYTES_PER_CHAR * chars + indexes
