"""UTF-16 text as UTF-8 bytes, recognised by the mark at its beginning."""

from __future__ import annotations

import codecs
import io
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_BLOCK_BYTES = 1 << 20


def is_utf32(head: bytes) -> bool:
    """Return whether the first bytes of a file have a mark of UTF-32, one of which begins with a mark of UTF-16."""
    return head.startswith(_UTF32_MARKS)


def utf16_encoding(head: bytes) -> str | None:
    """Return the encoding that the first bytes of a file declare, None if it is not UTF-16."""
    if is_utf32(head):
        return None
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def as_utf8(stream: BinaryIO, encoding: str) -> BinaryIO:
    """Return a stream of UTF-16 text as UTF-8.

    What is wrong in the text gives bytes that are not UTF-8, as in any other file.
    """
    return cast(BinaryIO, io.BufferedReader(_Utf8Stream(stream, encoding), _BLOCK_BYTES))


class _Utf8Stream(io.RawIOBase):
    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
        self._ready, self._is_end = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer)
        while not self._ready and not self._is_end:
            block = self._stream.read(_BLOCK_BYTES)
            self._is_end = not block
            self._ready = self._encode(block)
        count = min(len(target), len(self._ready))
        target[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _encode(self, block: bytes) -> bytes:
        try:
            return self._decoder.decode(block, final=not block).encode(errors="surrogatepass")
        except UnicodeDecodeError:  # half a character at the end of the file
            return b"\xff"
