"""Opens a SentencePiece model that may be damaged or foreign, after checking that it is one that nanochat trains.

SentencePiece believes tables in the file that it searches without limits (`precompiled_charsmap`), and settings that
lose text. Models trained here have neither, so the file's fields are compared with what `train_tokenizer` writes. The
format is that of Protocol Buffers; the numbers of fields are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import sentencepiece

from nanochat.errors import PreflightError
from nanochat.tokenizer.pieces import BASIC_PIECES, FIRST_BYTE_ID, SPECIAL_TOKENS

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_BPE = 2
_TRAINER_SETTINGS = {3: ("model_type", _BPE), 24: ("treat_whitespace_as_suffix", 0), 35: ("byte_fallback", 1)}
_NORMALIZER_SETTINGS = {
    2: ("precompiled_charsmap", b""),
    3: ("add_dummy_prefix", 0),
    4: ("remove_extra_whitespaces", 0),
    5: ("escape_whitespaces", 1),
}
_DEFAULTS: dict[str, int | bytes] = {
    "model_type": 1,
    "treat_whitespace_as_suffix": 0,
    "byte_fallback": 0,
    "precompiled_charsmap": b"",
    "add_dummy_prefix": 1,
    "remove_extra_whitespaces": 1,
    "escape_whitespaces": 1,
}
"""Values of settings that a file leaves out."""


def open_processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """Return SentencePiece's processor of a model.

    Raises:
        PreflightError: the bytes are not a model, or not one that nanochat trains.
    """
    try:
        _check_settings(model)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        _check_pieces(processor)
    except (RuntimeError, ValueError, IndexError) as error:
        raise PreflightError(f"not a SentencePiece model of nanochat ({error}); train the tokenizer again") from error
    return processor


def _check_settings(model: bytes) -> None:
    """Raise a ValueError or IndexError if the fields other than the pieces are not those of a trained model."""
    settings = [(field, value) for field, value in _fields(model) if field != _PIECE]
    if sorted(field for field, _ in settings) != [_TRAINER, _NORMALIZER]:
        raise ValueError("it does not have the two groups of settings of a trained model")
    for field, value in settings:
        if not isinstance(value, bytes):
            raise ValueError("its settings cannot be read")
        given = dict(_fields(value))
        for number, (name, expected) in (_TRAINER_SETTINGS if field == _TRAINER else _NORMALIZER_SETTINGS).items():
            if given.get(number, _DEFAULTS[name]) != expected:
                raise ValueError(f"its setting {name} must be {expected!r}")


def _check_pieces(processor: sentencepiece.SentencePieceProcessor) -> None:
    """Raise a ValueError if the pieces are not the unknown token, special tokens, bytes and learned pieces."""
    size = int(processor.get_piece_size())
    if size < BASIC_PIECES:
        raise ValueError(f"it has {size:,} pieces, but the special tokens and bytes alone are {BASIC_PIECES}")
    for i, name in enumerate(SPECIAL_TOKENS, start=1):
        if processor.id_to_piece(i) != name or not processor.is_control(i):
            raise ValueError(f"it has no {name} at id {i}")
    for byte in range(256):
        i = FIRST_BYTE_ID + byte
        if processor.id_to_piece(i) != f"<0x{byte:02X}>" or not processor.is_byte(i):
            raise ValueError(f"it has no byte {byte} at id {i}")
    if processor.id_to_piece(0) != "<unk>" or not processor.is_unknown(0):
        raise ValueError("id 0 is not the unknown token")
    for i in range(BASIC_PIECES, size):
        processor.id_to_piece(i)  # a piece that is not UTF-8 raises a ValueError
        if processor.is_control(i) or processor.is_byte(i) or processor.is_unused(i):
            raise ValueError(f"id {i} is not a learned piece")
        if not math.isfinite(processor.get_score(i)):
            raise ValueError(f"the rank of id {i} is not a finite number")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field of a Protocol Buffers message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
                yield tag >> 3, value
                continue
            case 1:
                length = 8
            case 2:
                length, at = _varint(message, at)
            case 5:
                length = 4
            case kind:
                raise ValueError(f"it has a field of the unknown kind {kind}")
        if at + length > len(message):
            raise ValueError("it ends too early")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that starts at a place, 7 bits a byte, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = message[at + shift // 7]
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at + shift // 7 + 1
    raise ValueError("it has a number of more than ten bytes")
