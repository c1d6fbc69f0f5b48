"""Rows of a tar file in the layout of `webdataset`: files whose names differ only in the suffix are one row.

Nothing is unpacked: links and folders are skipped, and so are files without text, such as pictures. The `webdataset`
builder of `datasets` is not used here: it drops keys that the first five rows lack, and loads the pictures.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePath

from nanochat.data.files.file_kinds import kind_of
from nanochat.data.files.file_selection import split_of_file
from nanochat.data.ingest.json_values import Row
from nanochat.errors import PreflightError

_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
_TEXT_SUFFIXES = ("txt", "text", "md", "html", "transcript", "caption", "cls")
_DOCUMENT_SUFFIXES = {"md", "html"}
_REMEDY = "unpack the archive and give its folder as `path`"
_MAX_TEXT_BYTES = 1 << 28


def tar_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a tar file. A `txt` file gives the key `text`, and the keys of a `json` file are taken over.

    Raises:
        PreflightError: a file in it cannot be read, would be lost, or is of a validation or test split; the message
            names it.
        tarfile.TarError: the tar file is damaged.
    """
    key, row = "", dict[str, object]()
    with tarfile.open(path, "r|") as archive:
        for member in archive:
            match = _NAME.fullmatch(member.name)
            if match is None or not member.isreg() or _is_hidden(member.name):
                continue
            _check_name(path, member.name)
            if match[1] != key:
                yield from _complete(row, f"{path}: {key}")
                key, row = match[1], {}
            fields = _fields(archive, member, match[2].lower(), f"{path}: {member.name}")
            if repeated := fields.keys() & row.keys():
                raise PreflightError(f"{path}: {member.name}: `{repeated.pop()}` was given by another file of `{key}`")
            row |= fields
    yield from _complete(row, f"{path}: {key}")


def _is_hidden(name: str) -> bool:
    """Return whether a file or its folder is hidden. Hidden files are skipped, as in folders."""
    return any(part.startswith(".") and part != ".." for part in PurePath(name).parts)


def _check_name(path: Path, name: str) -> None:
    """Check that a file may be trained on and is part of a sample, or is not data.

    Raises:
        PreflightError: it belongs to a validation or test split, or its rows would be lost.
    """
    label = split_of_file(PurePath(name))
    if label is not None and label.split != "train":
        raise PreflightError(f"{path}: `{name}` belongs to the split `{label.split}`; {_REMEDY}")
    kind = kind_of(PurePath(name))
    if kind is not None and (kind.compression or kind.format.removeprefix(".") not in (*_TEXT_SUFFIXES, "json")):
        raise PreflightError(f"{path}: `{name}` is a data file, not part of a webdataset sample; {_REMEDY}")


def _complete(row: Row, place: str) -> Iterator[Row]:
    """Yield a row if it has any key. Its `txt` is called `text`, unless a json file gives a `text`.

    Raises:
        PreflightError: the row is only a page or a markdown file.
    """
    if row and row.keys() <= _DOCUMENT_SUFFIXES:
        raise PreflightError(f"{place}.{next(iter(row))}: is a document, not part of a webdataset sample; {_REMEDY}")
    if row:
        yield row if "text" in row else {"text" if key == "txt" else key: value for key, value in row.items()}


def _fields(archive: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, place: str) -> Row:
    """Return the keys and values that a file adds to its row, none if it is not text."""
    is_json = suffix == "json"
    if not is_json and suffix.rpartition(".")[2] not in _TEXT_SUFFIXES:
        return {}
    if member.size > _MAX_TEXT_BYTES:
        raise PreflightError(f"{place}: has more than {_MAX_TEXT_BYTES >> 20} MB")
    file = archive.extractfile(member)
    assert file is not None, f"{place} is an ordinary file"
    try:
        text = file.read().decode("utf-8-sig")
        value = json.loads(text) if is_json else {suffix: text}
    except (ValueError, RecursionError) as error:
        raise PreflightError(f"{place}: {error}") from error
    if not isinstance(value, dict):
        raise PreflightError(f"{place}: expected an object, found {type(value).__name__}")
    return value
