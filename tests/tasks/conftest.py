"""A tokenizer of bytes, whose ids can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from nanochat.tokenizer.pieces import SPECIAL_TOKENS


class ByteTokenizer:
    """UTF-8 bytes 0-255, then the special tokens in order: `<|bos|>` is 256."""

    bos_id = 256

    def special(self, name: str) -> int:
        return 256 + SPECIAL_TOKENS.index(name)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        out = bytearray()
        for i in ids:
            out += bytes([i]) if i < 256 else SPECIAL_TOKENS[i - 256].encode()
        return out.decode()


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()
