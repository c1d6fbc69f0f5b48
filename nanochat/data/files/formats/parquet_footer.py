"""Column names and number of rows of a parquet file, read from its footer without pyarrow, whose import takes long.

The footer is a Thrift struct in the compact protocol (parquet-format: `FileMetaData`, with the schema as field 2 and
the number of rows as field 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAGIC = b"PAR1"
_MAX_SCHEMA_BYTES = 1 << 20
_TRUE, _FALSE, _BYTE, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 6, 7, 8, 9, 10, 12


def column_paths(path: Path) -> list[tuple[str, ...]]:
    """Return the path of each leaf column, such as `("messages", "list", "element", "role")`.

    Raises:
        ValueError: this is not a parquet file, or its schema is damaged or longer than 1 MiB.
        OSError: the file cannot be read.
    """
    footer = _find_field(path, 2)
    with _as_value_error(path):
        elements = [_element(footer) for _ in range(footer.list_header()[0])]
        return list(_leaves(iter(elements)))


def count_rows(path: Path) -> int:
    """Return the number of rows. Raises as `column_paths`."""
    footer = _find_field(path, 3)
    with _as_value_error(path):
        return footer.zigzag()


def _find_field(path: Path, wanted: int) -> _Compact:
    """Return a reader at the beginning of a field of the footer."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length + 8 > size:
            raise ValueError(f"{path}: no parquet footer")
        file.seek(size - 8 - length)
        footer = _Compact(file.read(min(length, _MAX_SCHEMA_BYTES)))
    with _as_value_error(path):
        for field, kind in footer.fields():
            if field == wanted:
                return footer
            footer.skip(kind)
    raise ValueError(f"{path}: no field {wanted} in the parquet footer")


@contextmanager
def _as_value_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (IndexError, StopIteration, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged parquet footer") from error


def _element(footer: _Compact) -> tuple[str, int]:
    """Return the name of a node of the schema and the number of its children (`SchemaElement`, fields 4 and 5)."""
    name, children = "", 0
    for field, kind in footer.fields():
        if field == 4:
            name = footer.binary().decode()
        elif field == 5:
            children = footer.zigzag()
        else:
            footer.skip(kind)
    return name, children


def _leaves(elements: Iterator[tuple[str, int]]) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the leaves below the root, which comes first; nodes are in depth-first order."""

    def below(parent: tuple[str, ...], children: int) -> Iterator[tuple[str, ...]]:
        for _ in range(children):
            name, grandchildren = next(elements)
            if grandchildren:
                yield from below((*parent, name), grandchildren)
            else:
                yield (*parent, name)

    return below((), next(elements)[1])


class _Compact:
    """A reader of Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield the id and the kind of each field of a struct. The caller reads or skips the value."""
        field = 0
        while (header := self._byte()) != 0:
            field = field + (header >> 4) if header >> 4 else self.zigzag()
            yield field, header & 15

    def zigzag(self) -> int:
        """Return a signed integer."""
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def binary(self) -> bytes:
        """Return the bytes of a binary value."""
        length = self._varint()
        self._at += length
        if self._at > len(self._data):
            raise IndexError("the data end within a value")
        return self._data[self._at - length : self._at]

    def list_header(self) -> tuple[int, int]:
        """Return the number of a list's items and their kind."""
        header = self._byte()
        return (header >> 4 if header >> 4 < 15 else self._varint()), header & 15

    def skip(self, kind: int) -> None:
        """Skip a value of a field."""
        if kind in (_TRUE, _FALSE):
            return  # the kind of the field is the value
        if kind == _BYTE:
            self._at += 1
        elif kind <= _I64:
            self._varint()
        elif kind == _DOUBLE:
            self._at += 8
        elif kind == _BINARY:
            self.binary()
        elif kind in (_LIST, _SET):
            length, item = self.list_header()
            for _ in range(length):
                self.skip(item if item > _FALSE else _BYTE)
        elif kind == _STRUCT:
            for _, inner in self.fields():
                self.skip(inner)
        else:
            raise IndexError(f"a value of kind {kind} is not expected in a schema")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift
