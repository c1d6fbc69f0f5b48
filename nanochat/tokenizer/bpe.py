"""Lossless byte-pair encoding with SentencePiece: training, encoding, decoding, and decoding of a stream.

Id 0 is the unknown token (never produced), 1-9 are the special tokens, 10-265 the bytes, and the rest learned pieces.
Encoding a text never gives a special token: text such as `<|bos|>` is encoded as ordinary characters.
Not here: which special tokens a conversation has (`chat_format`).
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from nanochat.errors import PreflightError
from nanochat.storage.files import write_bytes
from nanochat.storage.layout import TOKENIZER_FILE
from nanochat.tokenizer import training
from nanochat.tokenizer.pieces import BASIC_PIECES, SPACE_MARK, SPECIAL_TOKENS, TextError

__all__ = ["SPECIAL_TOKENS", "StreamDecoder", "TextError", "Tokenizer", "train"]

IntArray = npt.NDArray[np.int32]
_SPACE_MARK_BYTES = SPACE_MARK.encode()
_MAX_THREADS = 4


class Tokenizer:
    """A trained tokenizer. `decode(encode(text)) == text` for every valid Unicode text.

    The space is a piece of its own, whatever the tokenizer was trained on. Any other character without a piece is
    encoded as its UTF-8 bytes.
    """

    def __init__(self, model: bytes) -> None:
        """Read the bytes of a SentencePiece model.

        Raises:
            PreflightError: the bytes are not a model, or its ids 1 to 9 are not our special tokens.
        """
        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise PreflightError(f"not a SentencePiece model ({error}); train the tokenizer again") from error
        self.vocab_size = int(self._processor.get_piece_size())
        self._special_ids = {name: 1 + i for i, name in enumerate(SPECIAL_TOKENS)}
        for name, i in self._special_ids.items():
            if self.vocab_size < BASIC_PIECES or self._processor.id_to_piece(i) != name:
                raise PreflightError(
                    f"this SentencePiece model has no {name} at id {i}: it was not trained by nanochat"
                )
        self._bytes = [self._piece_bytes(i) for i in range(self.vocab_size)]
        self._shown = list(self._bytes)
        for name, i in self._special_ids.items():
            self._shown[i] = name.encode()
        self._space_mark_ids = [self._bytes.index(bytes([byte])) for byte in _SPACE_MARK_BYTES]
        self.token_bytes: IntArray = np.array([len(raw) for raw in self._bytes], dtype=np.int32)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Return the tokenizer in a file, or in the file `tokenizer.model` of a folder.

        Raises:
            PreflightError: there is no tokenizer, or it is damaged.
        """
        path = path / TOKENIZER_FILE if path.is_dir() else path
        if not path.is_file():
            raise PreflightError(f"no tokenizer at {path}; train one with a `tokenizer` stage")
        try:
            return cls(path.read_bytes())
        except PreflightError as error:
            raise PreflightError(f"{path}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write `tokenizer.model` into `folder`, which is created if missing."""
        write_bytes(folder / TOKENIZER_FILE, self.model)

    @property
    def bos_id(self) -> int:
        """The id that starts every document and conversation."""
        return self._special_ids["<|bos|>"]

    def special(self, name: str) -> int:
        """Return the id of a special token, such as `<|user_end|>`."""
        return self._special_ids[name]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens.

        Raises:
            TextError: `text` contains a lone surrogate.
        """
        try:
            first, *others = text.encode().split(_SPACE_MARK_BYTES)
        except UnicodeEncodeError as error:
            raise TextError(error) from error
        ids: list[int] = self._processor.encode(first)
        for part in others:
            ids += self._space_mark_ids
            ids += self._processor.encode(part)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Return the ids of each text as an int32 array. This is faster than `encode` and releases the GIL.

        Several threads share the texts if the machine has many cores; the ids are the same.

        Raises:
            TextError: a text contains a lone surrogate.
        """
        try:
            raw = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise TextError(error) from error
        plain = [i for i, text in enumerate(raw) if _SPACE_MARK_BYTES not in text]
        encoded = self._processor.encode([raw[i] for i in plain], return_type="numpy", num_threads=_threads())
        by_index = dict(zip(plain, encoded, strict=True))
        return [
            np.asarray(by_index[i] if i in by_index else self.encode(text), dtype=np.int32)
            for i, text in enumerate(texts)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`. Special tokens are written by name, and bytes that are not UTF-8 as U+FFFD."""
        return b"".join([self._shown[i] for i in ids]).decode("utf-8", errors="replace")

    def id_to_bytes(self, i: int) -> bytes:
        """Return the bytes of id `i`, which are empty for special tokens and the unknown token."""
        return self._bytes[i]

    def is_special(self, i: int) -> bool:
        """Return whether `i` is the id of a special token."""
        return 1 <= i <= len(SPECIAL_TOKENS)

    def learned_pieces(self) -> dict[str, int]:
        """Return the id of each learned piece by its text, the one that is merged first first."""
        learned = range(BASIC_PIECES, self.vocab_size)
        ranked = sorted(learned, key=self._processor.get_score, reverse=True)
        return {self._bytes[i].decode(): i for i in ranked}

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


class StreamDecoder:
    """Decodes ids that arrive one at a time and returns only complete characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, i: int) -> str:
        """Return the text that id `i` completes, which is empty while a character is incomplete."""
        if self._tokenizer.is_special(i):
            return self._utf8.decode(SPECIAL_TOKENS[i - 1].encode())
        return self._utf8.decode(self._tokenizer.id_to_bytes(i))

    def flush(self) -> str:
        """Return the rest of the stream: U+FFFD for an incomplete character, or nothing."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def train(texts: Iterable[str], *, vocab_size: int, max_chars: int, max_document_chars: int) -> Tokenizer:
    """Return a tokenizer trained on the first `max_chars` characters of `texts`, each cut to `max_document_chars`.

    The same texts give the same model. `vocab_size` is an upper bound, because a small text may have fewer pieces.

    Raises:
        StageError: there is no text, or `vocab_size` is too small for the special tokens, bytes and characters.
    """
    model = training.train_model(
        texts, vocab_size=vocab_size, max_chars=max_chars, max_document_chars=max_document_chars
    )
    return Tokenizer(model)
