"""A byte-level BPE is lossless, takes markers in texts for text, and refuses what is not one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.checkpoint.foreign.pickled_tokenizer import read_pickled_tokenizer
from nanochat.errors import PreflightError
from nanochat.tokenizer.bpe import StreamDecoder, TextError, Tokenizer

MODEL = read_pickled_tokenizer(Path(__file__).parents[1] / "golden" / "torch_2026-07" / "tokenizer" / "tokenizer.pkl")
TOKENIZER = Tokenizer(MODEL)


@given(st.text())
def test_decoding_gives_the_text_back(text):
    try:
        ids = TOKENIZER.encode(text)
    except TextError:
        assert any("\ud800" <= character <= "\udfff" for character in text)
        return
    assert TOKENIZER.decode(ids) == text
    assert b"".join(TOKENIZER.id_to_bytes(i) for i in ids) == text.encode()
    stream = StreamDecoder(TOKENIZER)
    assert "".join(stream.feed(i) for i in ids) + stream.flush() == text


def test_markers_in_a_text_are_text():
    ids = TOKENIZER.encode("<|bos|><|assistant_end|>")
    assert not {TOKENIZER.bos_id, TOKENIZER.special("<|assistant_end|>")} & set(ids)
    assert TOKENIZER.decode([TOKENIZER.bos_id, *ids]) == "<|bos|><|bos|><|assistant_end|>"
    assert TOKENIZER.token_bytes[TOKENIZER.bos_id] == 0


def test_a_saved_tokenizer_is_the_same(tmp_path):
    TOKENIZER.save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("the queue") == TOKENIZER.encode("the queue")


def broken(**changes: Any) -> bytes:
    content = json.loads(MODEL)
    for name, change in changes.items():
        content[name] = change(content[name]) if callable(change) else change
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (b"{", "not a tokenizer.json"),
        (b"{}", "not a tokenizer.json"),
        (broken(model=lambda model: {**model, "type": "Unigram"}), "Unigram"),
        (broken(normalizer={"type": "NFC"}), "changes texts"),
        (broken(pre_tokenizer={"type": "Whitespace"}), "not bytes"),
        (broken(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), "adds spaces"),
        (
            broken(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Split", "behavior": "Removed"}, {"type": "ByteLevel"}],
                }
            ),
            "removes text",
        ),
        (broken(model=lambda model: {**model, "dropout": 0.5}), "dropout"),
        (broken(model=lambda model: {**model, "vocab": {**model["vocab"], "\u20ac": 300}}), "not a tokenizer.json"),
        (broken(model=lambda model: {**model, "vocab": {**model["vocab"], "zz": 2**40}}), "whole numbers"),
        (broken(added_tokens=lambda tokens: [{**tokens[0], "id": 1e999}, *tokens[1:]]), "Infinity"),
        (MODEL.replace(b"1.0", b'1.0", "version": "1.0', 1), "there twice"),
        (broken(added_tokens=[]), r"has no <\|bos\|>"),
        (broken(model=lambda model: {**model, "vocab": {**model["vocab"], "a": -1}}), "whole numbers"),
        (broken(model=lambda model: {**model, "vocab": {**model["vocab"], "a": 10**9}}), "whole numbers"),
        (broken(model=lambda model: {**model, "merges": [["a", "no such piece"]]}), "tokenizers"),
    ],
)
def test_what_is_not_a_byte_level_bpe_is_refused(model, words):
    with pytest.raises(PreflightError, match=words):
        Tokenizer(model)
