"""Trains a SentencePiece model: the settings, the limits on the text, and readable errors."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator

import sentencepiece

from nanochat.errors import StageError
from nanochat.tokenizer.pieces import SPACE_MARK, SPECIAL_TOKENS, TextError

# SentencePiece skips every text that contains one of its own separators, so texts are split there.
_BREAKS = re.compile(f"[{SPACE_MARK}\u2585]")
_MAX_TEXT_BYTES = 1 << 22
_NEEDED_PIECES = re.compile(r"required_chars\. \d+ vs (\d+)")


def train_model(texts: Iterable[str], *, vocab_size: int, max_chars: int, max_document_chars: int) -> bytes:
    """Return the bytes of a trained model; see `bpe.train` for the arguments.

    Raises:
        StageError: there is no text, or `vocab_size` is too small for the special tokens, bytes and characters.
    """
    feed = _TrainingFeed(texts, max_chars, max_document_chars)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(feed),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            split_digits=True,
            split_by_unicode_script=False,
            max_sentencepiece_length=32,
            character_coverage=0.9995,
            required_chars=SPACE_MARK,  # or `character_coverage` drops the space from text that has few or none
            max_sentence_length=_MAX_TEXT_BYTES,
            control_symbols=list(SPECIAL_TOKENS),
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            num_threads=4,  # stored in the model file, so it must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        if feed.error is not None:
            raise feed.error from None
        raise _training_error(error, feed.chars, vocab_size) from error
    return written.getvalue()


class _TrainingFeed:
    """Yields the training texts within the limits. Keeps the exception of `texts`, which SentencePiece would hide."""

    def __init__(self, texts: Iterable[str], max_chars: int, max_document_chars: int) -> None:
        self._texts = texts
        self._max_chars = max_chars
        self._max_document_chars = max_document_chars
        self.chars = 0
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._limited()
        except BaseException as error:
            self.error = error
            raise

    def _limited(self) -> Iterator[str]:
        max_chars = _MAX_TEXT_BYTES // 4  # a character has at most 4 bytes in UTF-8
        for text in self._texts:
            text = text[: min(self._max_document_chars, self._max_chars - self.chars)]
            self.chars += len(text)
            for part in _BREAKS.split(text):
                _check_unicode(part)
                for start in range(0, len(part), max_chars):
                    yield part[start : start + max_chars]
            if self.chars >= self._max_chars:
                return


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(error) from error


def _training_error(error: RuntimeError, chars: int, vocab_size: int) -> StageError:
    needed = _NEEDED_PIECES.search(str(error))
    if needed is not None:
        return StageError(
            f"`tokenizer.vocab_size: {vocab_size}` is too small for this text: the special tokens, the 256 bytes "
            f"and the text's characters need {int(needed[1]):,} pieces; set it higher than that"
        )
    if chars == 0 or "sentences_.empty()" in str(error):  # SentencePiece drops line ends at the end of a text
        return StageError("the tokenizer's source has no text to train on; is its column empty?")
    return StageError(f"training the tokenizer failed: {error}")
