"""Bytes and lines of a file, decompressed if its suffix says that it is compressed, from an exact position on.

Lines are UTF-8: a UTF-16 file, recognised by its byte order mark, is converted. A position in a compressed or UTF-16
file is a position in the bytes that this module returns. To continue from there, the bytes before it are read again,
but not kept.
"""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from nanochat.data.files.file_kinds import Compression, kind_of
from nanochat.data.files.formats.utf16 import as_utf8, utf16_encoding
from nanochat.errors import PreflightError, StageError

_BLOCK_BYTES = 1 << 20
_MAX_EXPANSION = 1000
"""More expansion than that of any real text."""
_HEAD_BYTES = 1024
_DAMAGE = (OSError, EOFError, lzma.LZMAError, zlib.error)
_MAX_LINE_BYTES = 1 << 28
"""A longer line of a compressed file is refused, because few bytes can decompress to more than the memory holds."""


def raw_lines(path: Path, offset: int) -> Iterator[bytes]:
    """Yield the lines of a file as UTF-8 from a byte on.

    Raises:
        PreflightError: the file cannot be opened.
        StageError: the file is compressed, and damaged, cut off or has a line that is too long.
    """
    with _open_raw(path) as raw:
        yield from _lines(path, raw, offset)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open the text of a file, without its mark and with all its line ends. Bytes that are not UTF-8 are surrogates.

    Raises:
        PreflightError: the file cannot be opened.
        StageError: the file is compressed, and damaged or cut off at its beginning.
    """
    with _open_raw(path) as raw:
        text = _text_stream(path, raw)[0]
        yield io.TextIOWrapper(text, encoding="utf-8-sig", errors="surrogateescape", newline="")


def count_lines(path: Path, max_bytes: int) -> tuple[int, int]:
    """Return the number of lines that are not blank in about the first `max_bytes` of text, and their size in the file.

    Raises:
        PreflightError, StageError: as `raw_lines`.
    """
    lines = read_bytes = 0
    with _open_raw(path) as raw:
        for line in _lines(path, raw, 0):
            lines += bool(line.strip())
            read_bytes += len(line)
            if read_bytes > max_bytes:
                return lines, raw.tell()
    return lines, path.stat().st_size  # pyarrow has closed a compressed file that was read to its end


def blocks(path: Path) -> Iterator[bytes]:
    """Yield the whole content of a file in blocks.

    Raises:
        PreflightError: the file cannot be opened.
        StageError: the file is damaged or cut off.
    """
    with _open_raw(path) as raw:
        yield from _blocks(path, decompressed(raw, _compression(path)), sys.maxsize)


def read_before(path: Path, offset: int, max_bytes: int) -> tuple[bytes, bool]:
    """Return up to `max_bytes` that end at a position, and whether the content ends there.

    Raises:
        PreflightError: the file cannot be opened.
        StageError: the file is compressed, and damaged or cut off.
    """
    with _open_raw(path) as raw:
        stream, is_exact = _text_stream(path, raw)
        start = max(0, offset - max_bytes) if is_exact else 0
        if is_exact:
            raw.seek(start)
        before, done = b"", start
        for block in _blocks(path, stream, offset - start):
            done += len(block)
            before = (before + block)[-max_bytes:]
        return before, done == offset and not next(_blocks(path, stream, 1), b"")


def read_whole(path: Path, max_bytes: int) -> bytes:
    """Return the whole content of a file.

    Raises:
        PreflightError: the file cannot be opened.
        StageError: the file is damaged or cut off, or has more than `max_bytes`.
    """
    with _open_raw(path) as raw:
        content = b"".join(_blocks(path, decompressed(raw, _compression(path)), max_bytes + 1))
    if len(content) > max_bytes:
        raise StageError(f"{path}: has more than {max_bytes >> 20} MB; split the file")
    return content


def _lines(path: Path, raw: BinaryIO, offset: int) -> Iterator[bytes]:
    stream, is_exact = _text_stream(path, raw)
    if is_exact:
        raw.seek(offset)
        yield from raw
        return
    for _ in _blocks(path, stream, offset):
        pass
    suspicious = _MAX_LINE_BYTES
    try:
        while line := stream.readline(_MAX_LINE_BYTES):
            if len(line) == _MAX_LINE_BYTES:
                raise StageError(
                    f"{path}: the line from byte {offset:,} of the decompressed text on has more than "
                    f"{_MAX_LINE_BYTES >> 20} MB; it is not text in lines"
                )
            offset += len(line)
            if offset > suspicious:
                suspicious += _MAX_LINE_BYTES
                if offset > raw.tell() * _MAX_EXPANSION:
                    raise StageError(
                        f"{path}: decompresses to more than {_MAX_EXPANSION:,} times its size; is it text?"
                    )
            yield line
    except _DAMAGE as error:
        raise _damage(path, offset, error) from error


def _blocks(path: Path, stream: BinaryIO, count: int) -> Iterator[bytes]:
    """Yield the next `count` bytes of a stream, or fewer at its end, in blocks."""
    done = 0
    try:
        while block := stream.read(min(_BLOCK_BYTES, count - done)):
            done += len(block)
            yield block
    except _DAMAGE as error:
        raise _damage(path, done, error) from error


def _text_stream(path: Path, raw: BinaryIO) -> tuple[BinaryIO, bool]:
    """Return the text of an open file as UTF-8, and whether its positions are those in the file."""
    encoding, compression = utf16_encoding(head_of(path)), _compression(path)
    stream = decompressed(raw, compression)
    if encoding is not None:
        stream = as_utf8(stream, encoding)
    return stream, compression is None and encoding is None


def head_of(path: Path) -> bytes:
    """Return the first bytes of a file's content."""
    with _open_raw(path) as raw:
        return next(_blocks(path, decompressed(raw, _compression(path)), _HEAD_BYTES), b"")


def _open_raw(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise PreflightError(f"{path}: cannot be read ({error.strerror})") from error


def _compression(path: Path) -> Compression | None:
    kind = kind_of(path)
    return kind.compression if kind is not None else None


def decompressed(raw: BinaryIO, compression: Compression | None) -> BinaryIO:
    """Return the stream of the decompressed bytes. Damage raises an error of `_DAMAGE` when it is met."""
    if compression is None:
        return raw
    if compression == "gzip":  # pyarrow refuses the zero bytes that may follow the content
        return cast(
            BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=raw, mode="rb")), _BLOCK_BYTES)
        )
    if compression == "xz":  # pyarrow has no such codec
        return cast(BinaryIO, lzma.open(raw))
    import pyarrow as pa  # planning imports this module but reads no compressed file

    return io.BufferedReader(pa.CompressedInputStream(raw, compression), _BLOCK_BYTES)


def _damage(path: Path, offset: int, error: Exception) -> StageError:
    where = f"{path}: damaged or cut off after byte {offset:,} of the decompressed text"
    return StageError(f"{where} ({error}); download or copy it again")
