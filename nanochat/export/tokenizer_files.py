"""Writes a tokenizer in the form of Hugging Face `tokenizers`, with the chat template. The ids are the same.

In `tokenizer.json` the pieces contain real spaces, so that U+2581, which SentencePiece writes for a space, is encoded
as bytes as in `tokenizer.bpe`. These libraries recognise the names of special tokens in a text, except in those of a
conversation: the chat template puts GUARD into what looks like one, and the normalizer of `tokenizer.json` deletes it.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any

from nanochat.storage.files import write_text
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.tokenizer.pieces import FIRST_BYTE_ID, SPECIAL_TOKENS

PAD_TOKEN, PAD_ID = "<|pad|>", 0
"""The name of the unknown token, which no text gives. Rows of a batch are padded with it."""
GUARD = "\ufdd0"
"""A code point that Unicode reserves for the inside of programs, so that texts do not contain it."""
_END, _BOS = "<|assistant_end|>", "<|bos|>"


def write_tokenizer_files(folder: Path, tokenizer: Tokenizer, *, context: int) -> None:
    """Write `tokenizer.json`, and `tokenizer_config.json` with the chat template, into an exported folder."""
    write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _BOS,
        "eos_token": _END,
        "pad_token": _BOS if tokenizer.is_byte_level else PAD_TOKEN,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat_template(),
    }
    write_json(folder / "tokenizer_config.json", config)


def ending_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the ids that end an answer or a document."""
    return [tokenizer.special(_END), tokenizer.bos_id]


def chat_template() -> str:
    """Return the Jinja template that renders conversations as `tokenizer.chat_format` does."""
    return resources.files("nanochat.export.files").joinpath("chat_template.jinja").read_text(encoding="utf-8")


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of `tokenizer.json`."""
    # Jinja has no regular expressions, so the template guards the two texts that this pattern deletes from.
    normalizer = {"type": "Replace", "pattern": {"Regex": f"(?<=<){GUARD}(?=[{GUARD}|])"}, "content": ""}
    if tokenizer.is_byte_level:
        added = [_added_token(tokenizer.special(name), name) for name in SPECIAL_TOKENS]
        begin = _begin_with_bos(tokenizer.bos_id)
        return {**json.loads(tokenizer.model), "added_tokens": added, "normalizer": normalizer, "post_processor": begin}
    learned = tokenizer.learned_pieces()
    specials = {PAD_ID: PAD_TOKEN} | {tokenizer.special(name): name for name in SPECIAL_TOKENS}
    bytes_ = {f"<0x{byte:02X}>": FIRST_BYTE_ID + byte for byte in range(256)}
    merges = [pair for piece in learned for pair in _splits(piece, learned)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(i, name) for i, name in specials.items()],
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "post_processor": _begin_with_bos(tokenizer.bos_id),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {name: i for i, name in specials.items()} | bytes_ | learned,
            "merges": merges,
        },
    }


def _splits(piece: str, learned: Collection[str]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that merge into a piece. SentencePiece merges any of them."""
    pairs = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    return [(left, right) for left, right in pairs if left in learned and right in learned]


def _added_token(i: int, name: str) -> dict[str, Any]:
    options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": name, **options, "special": True}


def _begin_with_bos(bos_id: int) -> dict[str, Any]:
    """Return the step that puts BOS in front of a text, unless `add_special_tokens` is false."""
    bos = {"SpecialToken": {"id": _BOS, "type_id": 0}}
    text, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [bos, text],
        "pair": [bos, text, second],
        "special_tokens": {_BOS: {"id": _BOS, "ids": [bos_id], "tokens": [_BOS]}},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file of an exported folder."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", durable=False)
