"""Constants of the vocabulary, and the error for text that cannot be encoded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nanochat.errors import StageError

IntArray = npt.NDArray[np.int32]

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
FIRST_BYTE_ID = 1 + len(SPECIAL_TOKENS)
BASIC_PIECES = FIRST_BYTE_ID + 256

# Inside pieces SentencePiece writes a space as U+2581, so a U+2581 in the text is encoded as its three UTF-8 bytes.
SPACE_MARK = "\u2581"


class TextError(StageError):
    """A text contains half of a surrogate pair, so it is not valid Unicode and has no UTF-8 bytes."""

    def __init__(self, error: UnicodeEncodeError) -> None:
        super().__init__(
            f"not valid Unicode text: lone surrogate U+{ord(error.object[error.start]):04X} at character "
            f"{error.start + 1} of a text of {len(error.object):,}; repair or drop it"
        )
