"""Lossless byte-pair encoding (SentencePiece): training, encoding, decoding, bytes per token, streaming.

Ids: 0 unknown (never produced), 1-9 the special tokens, 10-265 the bytes, then the learned pieces. A special token is
only ever put in by its id: its spelling inside a text is encoded as ordinary text. Not here: how a conversation is
laid out (`chat_format`).
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
_MOST_THREADS = 4


class Tokenizer:
    """A trained tokenizer; `decode(encode(text)) == text` for every valid Unicode text."""

    def __init__(self, model: bytes) -> None:
        """Build from the bytes of a SentencePiece model.

        Raises:
            PreflightError: they are not one, or one without our special tokens at ids 1 to 9.
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
    def load(cls, folder: Path) -> Tokenizer:
        """Return the tokenizer saved in `folder`.

        Raises:
            PreflightError: there is none, or it is damaged.
        """
        path = folder / TOKENIZER_FILE
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
    def piece_count(self) -> int:
        """The number of pieces, special tokens and bytes included; the same as `vocab_size`."""
        return self.vocab_size

    @property
    def bos_id(self) -> int:
        """The id that starts every document and conversation."""
        return self._special_ids["<|bos|>"]

    def special(self, name: str) -> int:
        """Return the id of a special token, such as `<|user_end|>`."""
        return self._special_ids[name]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, never a special one.

        Raises:
            TextError: `text` holds a lone surrogate.
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
        """Return the ids of each text as an int32 array, faster than one by one; other threads run meanwhile.

        On a machine with many cores several threads share the texts; the ids are the same.

        Raises:
            TextError: a text holds a lone surrogate.
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
        """Return the text of `ids`; special tokens are shown by name, bytes that are not UTF-8 as U+FFFD."""
        return b"".join([self._shown[i] for i in ids]).decode("utf-8", errors="replace")

    def id_to_bytes(self, i: int) -> bytes:
        """Return the raw bytes that id `i` stands for; none for special tokens and the unknown."""
        return self._bytes[i]

    def is_special(self, i: int) -> bool:
        """Return whether `i` is one of the special tokens."""
        return 1 <= i <= len(SPECIAL_TOKENS)

    def _piece_bytes(self, i: int) -> bytes:
        piece: str = self._processor.id_to_piece(i)
        if self._processor.is_control(i) or self._processor.is_unknown(i):
            return b""
        if self._processor.is_byte(i):
            return bytes([int(piece[3:5], 16)])
        return piece.replace(SPACE_MARK, " ").encode()


def _threads() -> int:
    """Return how many threads encode: a quarter of the cores, for the rest of the program wants to run as well."""
    return max(1, min(_MOST_THREADS, (os.cpu_count() or 1) // 4))


class StreamDecoder:
    """Text from ids that arrive one at a time, never half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, i: int) -> str:
        """Return what can be shown now that id `i` has come; empty while a character is incomplete."""
        if self._tokenizer.is_special(i):
            return self._utf8.decode(SPECIAL_TOKENS[i - 1].encode())
        return self._utf8.decode(self._tokenizer.id_to_bytes(i))

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for an incomplete character, else nothing."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def train(texts: Iterable[str], *, vocab_size: int, max_chars: int, max_document_chars: int) -> Tokenizer:
    """Return a tokenizer trained on the first `max_chars` characters of `texts`, each cut to `max_document_chars`.

    The same texts give the same bytes. `vocab_size` is an upper bound: a small text may not have that many pieces.

    Raises:
        StageError: there is no text, or `vocab_size` cannot hold the specials, the bytes and the text's characters.
    """
    model = training.train_model(
        texts, vocab_size=vocab_size, max_chars=max_chars, max_document_chars=max_document_chars
    )
    return Tokenizer(model)
