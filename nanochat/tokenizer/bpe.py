"""Lossless byte-pair encoding: training, encoding, decoding, and decoding of a stream.

A tokenizer that nanochat trains is a SentencePiece model; imported models have a byte-level BPE. Both are used in the
same way. Encoding a text never gives a special token: text such as `<|bos|>` is encoded as ordinary characters.
Not here: which special tokens a conversation has (`chat_format`).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from nanochat.errors import PreflightError
from nanochat.storage.files import write_bytes
from nanochat.storage.layout import TOKENIZER_FILE
from nanochat.tokenizer.byte_level_codec import ByteLevelCodec
from nanochat.tokenizer.pieces import SPECIAL_TOKENS, IntArray, TextError
from nanochat.tokenizer.sentencepiece_codec import SentencePieceCodec
from nanochat.tokenizer.train_tokenizer import train_model

__all__ = ["SPECIAL_TOKENS", "StreamDecoder", "TextError", "Tokenizer", "train"]


class Codec(Protocol):
    """One kind of tokenizer."""

    pieces: list[bytes]
    """The bytes of each id, which are empty for special tokens and unused ids."""
    special_ids: dict[str, int]

    def encode(self, text: str) -> list[int]:
        """Return the ids of valid Unicode text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Return the ids of each text."""
        ...


class Tokenizer:
    """A tokenizer. `decode(encode(text)) == text` for every valid Unicode text."""

    def __init__(self, model: bytes) -> None:
        """Read the bytes of a tokenizer: a SentencePiece model, or the text of a tokenizer.json.

        Raises:
            PreflightError: the bytes are neither, or the tokenizer lacks our special tokens.
        """
        self.model = model
        codec: Codec = ByteLevelCodec(model) if model[:1] == b"{" else SentencePieceCodec(model)
        self._codec = codec
        self.vocab_size = len(codec.pieces)
        self._special_names = {i: name for name, i in codec.special_ids.items()}
        self._shown = [
            self._special_names[i].encode() if i in self._special_names else raw for i, raw in enumerate(codec.pieces)
        ]
        self.token_bytes: IntArray = np.array([len(raw) for raw in codec.pieces], dtype=np.int32)

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
        return self._codec.special_ids["<|bos|>"]

    def special(self, name: str) -> int:
        """Return the id of a special token, such as `<|user_end|>`."""
        return self._codec.special_ids[name]

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens.

        Raises:
            TextError: `text` contains a lone surrogate.
        """
        try:
            return self._codec.encode(text)
        except UnicodeEncodeError as error:
            raise TextError(error) from error

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Return the ids of each text as an int32 array. This is faster than `encode` and releases the GIL.

        Several threads share the texts if the machine has many cores; the ids are the same.

        Raises:
            TextError: a text contains a lone surrogate.
        """
        try:
            return self._codec.encode_batch(texts)
        except UnicodeEncodeError as error:
            raise TextError(error) from error

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`. Special tokens are written by name, and bytes that are not UTF-8 as U+FFFD."""
        return b"".join([self._shown[i] for i in ids]).decode("utf-8", errors="replace")

    def id_to_bytes(self, i: int) -> bytes:
        """Return the bytes of id `i`, which are empty for special tokens and the unknown token."""
        return self._codec.pieces[i]

    def shown_bytes(self, i: int) -> bytes:
        """Return the bytes of id `i`; those of a special token are its name's."""
        return self._shown[i]

    @property
    def is_byte_level(self) -> bool:
        """Whether it is a byte-level BPE; `model` is then a tokenizer.json."""
        return isinstance(self._codec, ByteLevelCodec)

    def learned_pieces(self) -> dict[str, int]:
        """Return the id of each learned piece of a SentencePiece model by its text, first the one merged first."""
        assert isinstance(self._codec, SentencePieceCodec), "a byte-level BPE has its own file"
        return self._codec.learned_pieces()


class StreamDecoder:
    """Decodes ids that arrive one at a time and returns only complete characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, i: int) -> str:
        """Return the text that id `i` completes, which is empty while a character is incomplete."""
        return self._utf8.decode(self._tokenizer.shown_bytes(i))

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
    model = train_model(texts, vocab_size=vocab_size, max_chars=max_chars, max_document_chars=max_document_chars)
    return Tokenizer(model)
