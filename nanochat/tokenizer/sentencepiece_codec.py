"""Encodes with a SentencePiece model, the kind of tokenizer that nanochat trains.

Id 0 is the unknown token (never produced), 1-9 are the special tokens, 10-265 the bytes, and the rest learned pieces.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from nanochat.tokenizer.pieces import BASIC_PIECES, SPACE_MARK, SPECIAL_TOKENS, IntArray
from nanochat.tokenizer.sentencepiece_file import open_processor

_SPACE_MARK_BYTES = SPACE_MARK.encode()
_MAX_THREADS = 4


class SentencePieceCodec:
    """A codec of `bpe.Tokenizer`. The space is a piece of its own; a character without a piece is its UTF-8 bytes."""

    def __init__(self, model: bytes) -> None:
        """Read the bytes of a model. A PreflightError says that they are none, or not one of nanochat's."""
        self._processor = open_processor(model)
        size = int(self._processor.get_piece_size())
        self.special_ids = {name: 1 + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.pieces = [self._piece_bytes(i) for i in range(size)]
        self._space_mark_ids = [self.pieces.index(bytes([byte])) for byte in _SPACE_MARK_BYTES]

    def encode(self, text: str) -> list[int]:
        """Return the ids of valid Unicode text."""
        first, *others = text.encode().split(_SPACE_MARK_BYTES)
        ids: list[int] = self._processor.encode(first)
        for part in others:
            ids += self._space_mark_ids
            ids += self._processor.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Return the ids of each text. Several threads share the texts if the machine has many cores."""
        raw = [text.encode() for text in texts]
        plain = [i for i, text in enumerate(raw) if _SPACE_MARK_BYTES not in text]
        encoded = self._processor.encode([raw[i] for i in plain], return_type="numpy", num_threads=_threads())
        by_index = dict(zip(plain, encoded, strict=True))
        return [
            np.asarray(by_index[i] if i in by_index else self.encode(text), dtype=np.int32)
            for i, text in enumerate(texts)
        ]

    def learned_pieces(self) -> dict[str, int]:
        """Return the id of each learned piece by its text, the one that is merged first first."""
        ranked = sorted(range(BASIC_PIECES, len(self.pieces)), key=self._processor.get_score, reverse=True)
        return {self.pieces[i].decode(): i for i in ranked}

    def _piece_bytes(self, i: int) -> bytes:
        piece: str = self._processor.id_to_piece(i)
        if self._processor.is_control(i) or self._processor.is_unknown(i):
            return b""
        if self._processor.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE_MARK, " ").encode()


def _threads() -> int:
    """Return the number of threads that encode: a quarter of the cores, so that the training step can use the rest."""
    return max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 4))
