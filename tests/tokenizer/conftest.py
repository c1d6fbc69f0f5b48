from __future__ import annotations

import random

import pytest

from nanochat.tokenizer import bpe

TEXT = """the quick brown fox jumps over lazy dogs while naïve coöperation costs 12345 yen at 7:30 in Zürich
def return self"""
WORDS = TEXT.split()


def make_texts(count: int, seed: int) -> list[str]:
    """Return texts of random words with line breaks and indentation."""
    draw = random.Random(seed)
    return [
        "".join(draw.choice(WORDS) + draw.choice([" ", " ", "\n", ", ", "\n    "]) for _ in range(80))
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def tokenizer() -> bpe.Tokenizer:
    return bpe.train(make_texts(200, 1), vocab_size=600, max_chars=10**6, max_document_chars=10_000)


class LetterTokenizer:
    """A tokenizer with predictable ids: special tokens are 1 to 9, letters are their code points plus 1000."""

    bos_id = 1

    def special(self, name: str) -> int:
        return 1 + bpe.SPECIAL_TOKENS.index(name)

    def encode(self, text: str) -> list[int]:
        return [1000 + ord(letter) for letter in text]


@pytest.fixture(scope="session")
def letters() -> LetterTokenizer:
    return LetterTokenizer()
