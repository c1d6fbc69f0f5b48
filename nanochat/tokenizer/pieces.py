"""The special tokens, how SentencePiece writes a space, and what text cannot be encoded."""

from __future__ import annotations

from nanochat.errors import StageError

SPECIAL_TOKENS: tuple[str, ...] = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
BASIC_PIECES = 1 + len(SPECIAL_TOKENS) + 256

# SentencePiece writes spaces as U+2581 inside pieces, so a U+2581 of the text itself goes in as its three bytes.
SPACE_MARK = "\u2581"


class TextError(StageError):
    """A text is not valid Unicode (it holds half of a surrogate pair), so it has no bytes to encode."""

    def __init__(self, error: UnicodeEncodeError) -> None:
        """Describe what `str.encode` refused."""
        super().__init__(
            f"not valid Unicode text: lone surrogate U+{ord(error.object[error.start]):04X} at character "
            f"{error.start + 1} of a text of {len(error.object):,}; repair or drop it"
        )
