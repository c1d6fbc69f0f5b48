"""Rows of a tar file in the layout of `webdataset`: files whose names differ only in the suffix are one row.

Nothing is unpacked: links and folders are skipped, and so are files without text, such as pictures. The `webdataset`
builder of `datasets` is not used here: it drops keys that the first five rows lack, and loads the pictures.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePath

from nanochat.data.files.file_kinds import kind_of
from nanochat.data.files.formats.json_lines import found_type, parse_line
from nanochat.data.files.selection.data_file import split_of_file
from nanochat.data.ingest.row_tables import FoundRow, Row, UnreadableFileError

_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
_TEXT_SUFFIXES = ("txt", "text", "md", "html", "xml", "transcript", "caption", "cls")
_DOCUMENT_SUFFIXES = {"md", "html", "xml"}
_REMEDY = "unpack the archive and give its folder as `path`"
_MAX_TEXT_BYTES = 1 << 28


def tar_rows(path: Path) -> Iterator[FoundRow]:
    """Yield the rows of a tar file. A `txt` file gives the key `text`, and the keys of a `json` file are taken over.

    A row is bad if one of its files cannot be read.

    Raises:
        UnreadableFileError: a file in it would be lost, or is of a validation or test split; the message names it.
        tarfile.TarError: the tar file is damaged.
    """
    key, row = "", dict[str, object]()
    problem: str | None = None
    with tarfile.open(path, "r|") as archive:
        for member in archive:
            match = _NAME.fullmatch(member.name)
            if match is None or not member.isreg() or _is_hidden(member.name):
                continue
            _check_name(member.name)
            if match[1] != key:
                yield from _complete(key, row, problem)
                key, row, problem = match[1], {}, None
            try:
                fields = _fields(archive, member, match[2].lower())
                if repeated := fields.keys() & row.keys():
                    raise ValueError(f"`{repeated.pop()}` was given by another file of `{key}`")
                row |= fields
            except ValueError as error:
                problem = problem or f"{PurePath(member.name).name}: {error}"
    yield from _complete(key, row, problem)


def _is_hidden(name: str) -> bool:
    """Return whether a file or its folder is hidden. Hidden files are skipped, as in folders."""
    return any(part.startswith(".") and part != ".." for part in PurePath(name).parts)


def _check_name(name: str) -> None:
    """Check that a file may be trained on and is part of a sample, or is not data.

    Raises:
        UnreadableFileError: it belongs to a validation or test split, or its rows would be lost.
    """
    label = split_of_file(PurePath(name))
    if label is not None and label.split != "train":
        raise UnreadableFileError(f": `{name}` belongs to the split `{label.split}`; {_REMEDY}")
    kind = kind_of(PurePath(name))
    if kind is not None and (kind.compression or kind.format.removeprefix(".") not in (*_TEXT_SUFFIXES, "json")):
        raise UnreadableFileError(f": `{name}` is a data file, not part of a webdataset sample; {_REMEDY}")


def _complete(key: str, row: Row, problem: str | None) -> Iterator[FoundRow]:
    """Yield a row if it has any key. Its `txt` is called `text`, unless a json file gives a `text`.

    Raises:
        UnreadableFileError: the row is only a page, an xml or a markdown file.
    """
    place = f": {key}"
    if problem is not None:
        yield FoundRow(place, {}, problem)
        return
    if row and row.keys() <= _DOCUMENT_SUFFIXES:
        name = f"{key}.{next(iter(row))}"
        raise UnreadableFileError(f": {name}: is a document, not part of a webdataset sample; {_REMEDY}")
    if row:
        values = row if "text" in row else {"text" if key == "txt" else key: value for key, value in row.items()}
        yield FoundRow(place, values)


def _fields(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> Row:
    """Return the keys and values that a file adds to its row, none if it is not text.

    Raises:
        ValueError: the file is not UTF-8 or not JSON, or it is too large. The message says why.
    """
    is_json = suffix == "json"
    if not is_json and suffix.rpartition(".")[2] not in _TEXT_SUFFIXES:
        return {}
    if member.size > _MAX_TEXT_BYTES:
        raise ValueError(f"it has more than {_MAX_TEXT_BYTES >> 20} MB")
    file = archive.extractfile(member)
    assert file is not None, "an ordinary file has content"
    content = file.read()
    if not is_json:
        try:
            return {suffix: content.decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 at byte {error.start + 1}") from error
    value, problem = parse_line(content)
    if problem is not None:
        raise ValueError(problem)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {found_type(value)}")
    return value
