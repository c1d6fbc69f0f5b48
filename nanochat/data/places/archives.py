"""Unpacks zip and tar archives from the network, and refuses what could write elsewhere or fill the disk.

It refuses names that leave the folder or occur twice, links and other special files, members with more bytes than
announced, and archives that grow too much. An archive is unpacked whole or its folder is deleted.
"""

from __future__ import annotations

import io
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from nanochat.data.files.file_kinds import Compression
from nanochat.data.files.formats.streams import decompressed
from nanochat.data.places.file_names import show, why_refused
from nanochat.errors import PreflightError
from nanochat.plurals import several

_TAR_COMPRESSIONS: dict[str, Compression | None] = {
    ".tar": None,
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.zst": "zstd",
    ".tar.bz2": "bz2",
    ".tbz2": "bz2",
    ".tar.xz": "xz",
    ".txz": "xz",
}
_MAX_RATIO = 100
"""How many times larger than the archive its content may be. Text shrinks to a tenth, repeated text to a fiftieth."""
_MIN_LIMIT_BYTES = 1 << 26
"""Archives may always grow to this size."""
_MAX_HEADER_BYTES = 1 << 20
"""The most that a tar archive may have between the contents of two members, because tarfile keeps it in memory."""
_SPARE_BYTES = 1 << 28
_BLOCK_BYTES = 1 << 20
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, ValueError)


def is_archive(name: str) -> bool:
    """Return whether a file is an archive that `unpack` reads, by its name."""
    return name.lower().endswith((".zip", *_TAR_COMPRESSIONS))


def unpack(archive: Path, name: str, folder: Path) -> None:
    """Unpack the files of an archive into an empty folder. Its `name` decides the format.

    Raises:
        PreflightError: the archive is refused, damaged or has no room; the message names the member.
        OSError: a file cannot be written.
    """
    target = _Target(name, folder, max(_MIN_LIMIT_BYTES, _MAX_RATIO * archive.stat().st_size))
    try:
        if name.lower().endswith(".zip"):
            _unpack_zip(archive, target)
        else:
            _unpack_tar(archive, name, target)
    except _DAMAGE as error:
        raise PreflightError(f"{target.where()}: damaged or of an unknown form ({error}); get it again") from error
    except OSError as error:
        if error.errno is not None:  # the disk; the codecs of pyarrow raise errors without a number
            raise
        raise PreflightError(f"{target.where()}: damaged ({error}); get it again") from error


class _Target:
    """The folder that receives the files of an archive, and how much more of them it accepts."""

    def __init__(self, archive: str, folder: Path, max_bytes: int) -> None:
        self._archive = archive
        self._member: str | None = None
        self._folder = folder
        self._left_bytes = max_bytes
        self.max_bytes = max_bytes

    def where(self) -> str:
        """Return the archive and the member that is unpacked, for messages."""
        return self._archive if self._member is None else f"{self._archive}, member {show(self._member)}"

    def refuse(self, reason: str) -> PreflightError:
        """Return the error that the archive is refused."""
        return PreflightError(f"{self.where()}: {reason}; this archive is refused, and nothing of it is kept")

    def enter(self, name: str, size: int) -> PurePosixPath:
        """Return the checked name of the next member, after accounting for its announced size."""
        self._member = name
        if (reason := why_refused(name)) is not None:
            raise self.refuse(reason)
        self._left_bytes -= size
        if size < 0 or self._left_bytes < 0:
            limit = f"{self.max_bytes / 1e6:,.0f} MB, {_MAX_RATIO} times its own size"
            raise self.refuse(f"the content of the archive has more than {limit}")
        free = shutil.disk_usage(self._folder).free
        if size + _SPARE_BYTES > free:
            raise PreflightError(
                f"{self.where()}: no room for its {size / 1e9:.1f} GB, {free / 1e9:.1f} GB free at "
                f"{self._folder.parent}; free some space, or set NANOCHAT_BASE_DIR to another disk"
            )
        return PurePosixPath(name)

    def write(self, name: str, size: int, content: IO[bytes]) -> None:
        """Write a file with exactly the announced size."""
        path = self._folder / self.enter(name, size)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            out = path.open("xb")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise self.refuse("its name occurs twice") from None
        left = size
        with out:
            while block := content.read(min(_BLOCK_BYTES, left + 1)):
                left -= len(block)
                if left < 0:
                    raise self.refuse(f"it has more than the announced {several(size, 'byte')}")
                out.write(block)
        if left:
            raise EOFError(f"it ends {several(left, 'byte')} too early")


def _unpack_zip(archive: Path, target: _Target) -> None:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            mode = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir():
                target.enter(member.filename, 0)
                continue
            if mode not in (0, stat.S_IFREG):
                target.enter(member.filename, 0)
                raise target.refuse("it is a link or a special file")
            if member.flag_bits & 1:
                target.enter(member.filename, 0)
                raise target.refuse("it is encrypted")
            with file.open(member) as content:
                target.write(member.filename, member.file_size, content)


def _unpack_tar(archive: Path, name: str, target: _Target) -> None:
    compression = next(value for suffix, value in _TAR_COMPRESSIONS.items() if name.lower().endswith(suffix))
    with archive.open("rb") as raw:
        stream = _LimitedStream(decompressed(raw, compression), target)
        with tarfile.open(fileobj=stream, mode="r|") as file:
            while True:
                stream.allow(_MAX_HEADER_BYTES)
                member = file.next()
                if member is None:
                    break
                if member.isdir():
                    target.enter(member.name, 0)
                    continue
                if not member.isreg() or member.issparse():
                    target.enter(member.name, 0)
                    raise target.refuse("it is a link or a special file")
                stream.allow(member.size + _MAX_HEADER_BYTES)
                content = file.extractfile(member)
                assert content is not None, "an ordinary file has content"
                target.write(member.name, member.size, content)
        stream.allow(_BLOCK_BYTES)
        while stream.read(_BLOCK_BYTES):  # the checksum of the compressed stream is at its end
            stream.allow(_BLOCK_BYTES)


class _LimitedStream(io.RawIOBase):
    """A stream that may only be read as far as is allowed, so that few bytes cannot become too many."""

    def __init__(self, stream: IO[bytes], target: _Target) -> None:
        self._stream = stream
        self._target = target
        self._position = self._allowed = 0

    def allow(self, size: int) -> None:
        """Allow to read `size` more bytes."""
        self._allowed = self._position + size

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes.

        Raises:
            PreflightError: more is read than is allowed, or than the archive may hold.
        """
        assert size >= 0, "tarfile reads blocks"
        if self._position > min(self._allowed, self._target.max_bytes):
            raise self._target.refuse("it has too much data between or after its members")
        block = self._stream.read(size)
        self._position += len(block)
        return block
