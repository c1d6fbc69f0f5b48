"""Encodes with a byte-level BPE, the kind of tokenizer of imported models, through Hugging Face's `tokenizers`.

The model is the text of a `tokenizer.json`. `from_tiktoken` makes one from the ranks of tiktoken, which PyTorch
nanochat uses. Text is cut by a regular expression, and in each part the pair with the lowest rank is merged first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers

from nanochat.errors import PreflightError
from nanochat.plurals import several
from nanochat.storage.given_json import parse_object
from nanochat.tokenizer.pieces import SPECIAL_TOKENS, IntArray

_CHANGING_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
"""Options of the library's BPE with which encoding is random or not lossless."""
_CUTTING_STEPS = {"ByteLevel", "Split", "Digits"}
"""Steps of the library before encoding that only cut a text into parts."""


class ByteLevelCodec:
    """A codec of `bpe.Tokenizer`."""

    def __init__(self, model: bytes) -> None:
        """Read a `tokenizer.json`. A PreflightError says that it is damaged, or not a byte-level BPE of a nanochat."""
        try:
            content = parse_object(model)
            self.special_ids = _special_ids(content)
            vocabulary: dict[str, int] = content["model"]["vocab"]
            _check(content, vocabulary, self.special_ids)
            size = 1 + max(*vocabulary.values(), *self.special_ids.values())
            self.pieces = [b""] * size
            special = set(self.special_ids.values())
            for piece, i in vocabulary.items():
                if i not in special:
                    self.pieces[i] = bytes(_BYTES[character] for character in piece)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise PreflightError(f"not a tokenizer.json of a byte-level BPE: {str(error)[:200]!r}") from error
        self._encoder = _encoder(content)

    def encode(self, text: str) -> list[int]:
        """Return the ids of valid Unicode text."""
        text.encode()  # raises the error for text that is not
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[IntArray]:
        """Return the ids of each text."""
        for text in texts:
            text.encode()
        encoded = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(each.ids, dtype=np.int32) for each in encoded]


def from_tiktoken(ranks: Mapping[bytes, int], pattern: str, special_ids: Mapping[str, int]) -> bytes:
    """Return the tokenizer.json of a tiktoken encoding.

    Args:
        ranks: piece -> id, which is also the order of merging.
        pattern: regular expression that cuts a text into parts.
        special_ids: name -> id of the special tokens.
    """
    ordered = sorted(ranks, key=lambda piece: ranks[piece])
    merges = [list(map(_show, _split(piece, ranks))) for piece in ordered if len(piece) > 1]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for name, i in special_ids.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # tiktoken takes a part that is a piece as it is, without merging.
            "ignore_merges": True,
            "vocab": {_show(piece): ranks[piece] for piece in ordered},
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _split(piece: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two pieces from which a piece is merged: what is left when only earlier merges are done."""
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 2:
        pairs = [ranks.get(parts[i] + parts[i + 1], len(ranks)) for i in range(len(parts) - 1)]
        at = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[at] >= ranks[piece]:
            raise PreflightError(f"the piece {piece!r} of the tokenizer cannot be merged from pieces before it")
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _byte_characters() -> list[str]:
    """Return the character for each byte in a byte-level vocabulary: itself if it is printable, else one from U+0100.

    Source: GPT-2's encoder (Radford et al. 2019).
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_CHARACTERS = _byte_characters()
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}


def _show(piece: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in piece)


def _encoder(content: Mapping[str, Any]) -> tokenizers.Tokenizer:
    # Markers in a text are ordinary characters, so the library must not know them, nor add any around a text.
    plain = {**content, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:
        raise PreflightError(f"not a tokenizer.json that the library `tokenizers` reads: {error}") from error


def _special_ids(content: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids of our special tokens. A PreflightError names those that the tokenizer lacks."""
    known = {token["content"]: int(token["id"]) for token in content["added_tokens"]} | {
        name: i for name, i in content["model"]["vocab"].items() if name in SPECIAL_TOKENS
    }
    missing = [name for name in SPECIAL_TOKENS if name not in known]
    if missing:
        raise PreflightError(f"the tokenizer has no {', '.join(missing)}: it is not that of a nanochat model")
    return {name: known[name] for name in SPECIAL_TOKENS}


def _check(content: Mapping[str, Any], vocabulary: Mapping[str, int], special_ids: Mapping[str, int]) -> None:
    """Raise a ValueError if the tokenizer is not lossless, or its ids are not those of one table."""
    if content["model"]["type"] != "BPE":
        raise ValueError(f"its model is {content['model']['type']}")
    if content.get("normalizer"):
        raise ValueError("it changes texts before it encodes them")
    if given := [name for name in _CHANGING_OPTIONS if content["model"].get(name)]:
        raise ValueError(f"its model has {', '.join(given)}")
    steps = list(_steps(content["pre_tokenizer"]))
    if [step["type"] for step in steps].count("ByteLevel") != 1 or steps[-1]["type"] != "ByteLevel":
        raise ValueError("its pieces are not bytes")
    if any(step.get("add_prefix_space") or step.get("behavior") == "Removed" for step in steps):
        raise ValueError("it adds spaces or removes text before it encodes")
    if unknown := {step["type"] for step in steps} - _CUTTING_STEPS:
        raise ValueError(f"it has steps before encoding that may change text: {unknown}")
    ids = [i for name, i in vocabulary.items() if name not in special_ids] + list(special_ids.values())
    if any(type(i) is not int or not 0 <= i < 2 * len(ids) for i in ids) or len(set(ids)) != len(ids):
        raise ValueError("its ids are not different whole numbers")
    missing = sum(character not in vocabulary for character in _CHARACTERS)
    if missing:
        raise ValueError(f"it has no piece for {several(missing, 'byte')}")


def _steps(step: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a pre-tokenizer, without the sequences that group them."""
    if step["type"] == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _steps(inner)
    else:
        yield step
