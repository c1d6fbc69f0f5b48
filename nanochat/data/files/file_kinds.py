"""The kinds of files that hold text or rows: their suffixes, how they are compressed, and how they are read.

Every other module asks this table. Planning a run imports it, so it imports nothing heavy.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, NamedTuple

Compression = Literal["gzip", "zstd", "bz2", "xz"]
Reader = Literal["parquet", "json lines", "text lines", "html", "xml", "converted"]
"""How a file is read. A `converted` file is first copied into parquet files of our own."""
Group = Literal["rows", "text", "tables", "json", "archives"]
"""Of a data set, the files of the first of these groups are read, because the others often only describe them."""


class _Format(NamedTuple):
    reader: Reader
    group: Group
    is_code: bool = False


_CODE = (
    *("bash", "c", "cc", "clj", "cpp", "cs", "css", "cu", "cuh", "cxx", "dart", "el", "erl", "ex", "exs", "f90", "go"),
    *("h", "hpp", "hs", "java", "jl", "js", "jsx", "kt", "lisp", "lua", "metal", "ml", "mm", "php", "pl", "py", "pyi"),
    *("pyx", "r", "rb", "rs", "scala", "scm", "sh", "sql", "swift", "ts", "tsx", "vue", "zig"),
)
_FORMATS: dict[str, _Format] = {
    ".parquet": _Format("parquet", "rows"),
    ".jsonl": _Format("json lines", "rows"),
    ".ndjson": _Format("json lines", "rows"),
    ".arrow": _Format("converted", "tables"),
    ".feather": _Format("converted", "tables"),
    ".csv": _Format("converted", "tables"),
    ".tsv": _Format("converted", "tables"),
    ".json": _Format("converted", "json"),
    ".tar": _Format("converted", "archives"),
    ".txt": _Format("text lines", "text"),
    ".md": _Format("text lines", "text"),
    ".markdown": _Format("text lines", "text"),
    **{f".{name}": _Format("text lines", "text") for name in ("mdown", "mdx", "mkd", "qmd", "rmd", "text", "textile")},
    ".rst": _Format("text lines", "text"),
    ".tex": _Format("text lines", "text"),
    ".org": _Format("text lines", "text"),
    ".adoc": _Format("text lines", "text"),
    ".html": _Format("html", "text"),
    ".htm": _Format("html", "text"),
    ".xml": _Format("xml", "text"),
    **{f".{name}": _Format("text lines", "text", is_code=True) for name in _CODE},
}
"""All formats by their suffixes. Of files with the same text in several formats, the first one here is read."""
_UNREAD_DOCUMENTS = (
    *("doc", "docx", "epub", "ipynb", "key", "mobi", "numbers", "odp", "ods", "odt", "pages", "pdf", "ppt", "pptx"),
    *("ps", "rtf", "xls", "xlsx", "zip", "7z", "rar", "tgz", "db", "sqlite", "eml", "log", "mbox", "msg", "srt", "vtt"),
    "wiki",
)
"""Suffixes, without the dot, of files that hold text but are not read."""
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
GROUPS: tuple[Group, ...] = ("rows", "text", "tables", "json", "archives")

READABLE = (
    "parquet, jsonl, txt, md, html, xml, source code, csv, tsv, json, arrow or tar; all but parquet also compressed as "
    "gz, zst, bz2 or xz"
)
"""The table in words, for messages."""


@dataclass(frozen=True)
class FileKind:
    """The kind of a file, found from its name.

    Attributes:
        format: the suffix of the format in lower case, such as `.jsonl`.
        reader: how the file is read.
        group: the group of formats that are read together in a folder.
        is_code: whether it is source code. Two such files whose names differ in the suffix hold different texts.
        compression: how the file is compressed, None if it is not.
        suffix: what the file's name ends with, in lower case: `.jsonl.gz`.
    """

    format: str
    reader: Reader
    group: Group
    is_code: bool
    compression: Compression | None
    suffix: str

    @property
    def has_rows(self) -> bool:
        """Whether the file holds rows with keys or columns, not plain text."""
        return self.group != "text"

    @property
    def is_data(self) -> bool:
        """Whether the file holds rows or plain text, not a page, a program or text with markup."""
        return self.has_rows or self.format == ".txt"

    @property
    def needs_pyarrow(self) -> bool:
        """Whether the file is read with pyarrow, which takes memory."""
        return self.reader in ("parquet", "converted") or self.compression is not None

    @property
    def rank(self) -> int:
        """The format's place in the order of preference among files with the same text."""
        return list(_FORMATS).index(self.format)

    @property
    def row_rank(self) -> int:
        """The rank, which is the same for all kinds of plain text."""
        return min(self.rank, list(_FORMATS).index(".txt"))


def kind_of(path: PurePath | str) -> FileKind | None:
    """Return the kind of a file, or of the files that a pattern such as `*.jsonl.gz` matches; None if it is unknown."""
    return _kind_of_name((path if isinstance(path, PurePath) else PurePath(path)).name.lower())


@functools.lru_cache(maxsize=4096)  # a listing asks a dozen times for each file
def _kind_of_name(lower_name: str) -> FileKind | None:
    name = PurePath(lower_name)
    compression = _COMPRESSIONS.get(name.suffix)
    suffix = name.suffix if compression is None else name.with_suffix("").suffix
    if suffix not in _FORMATS or (suffix == ".parquet" and compression is not None):
        return None
    reader, group, is_code = _FORMATS[suffix]
    return FileKind(suffix, reader, group, is_code, compression, suffix + (name.suffix if compression else ""))


@functools.lru_cache(maxsize=64)
def reader_of(path: PurePath) -> Reader | None:
    """Return the reader of a file, None if its kind is unknown."""
    kind = kind_of(path)
    return kind.reader if kind is not None else None


def is_unread_document(path: PurePath) -> bool:
    """Return whether a file of unknown kind probably holds text, by its suffix."""
    return kind_of(path) is None and path.suffix.lower().removeprefix(".") in _UNREAD_DOCUMENTS


def stem_of(path: PurePath | str) -> str:
    """Return a file's name without the suffix of its kind, such as `a` for `a.jsonl.gz`; the name if it has no kind."""
    path = path if isinstance(path, PurePath) else PurePath(path)
    name, kind = path.name, kind_of(path)
    return name if kind is None else name[: -len(kind.suffix)]


def lower_suffix(name: str) -> str:
    """Return a file name or a pattern with the suffix of its kind, or else its last suffix, in lower case."""
    kind = kind_of(name)
    start = len(name) - len(kind.suffix if kind is not None else PurePath(name).suffix)
    return name[:start] + name[start:].lower()


def contains_suffix(pattern: str, name: str) -> bool:
    """Return whether a pattern contains the suffix of the file it matches, as `*.md` does and `notes*` does not."""
    kind = kind_of(pattern)
    return kind is not None and kind == kind_of(name)
