"""Reads the rows of a json file in parts of bounded size, without changing any value.

The file is an array of objects or texts, an object that holds such an array under one of its keys, a single object, or
objects one after the other. The `json` builder of `datasets` is not used here: it turns texts that look like dates into
dates, refuses long numbers, and reads an array whole into memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from nanochat.errors import PreflightError

_READ_CHARS = 1 << 20
_MAX_VALUE_CHARS = 1 << 28
_BLANK = " \t\r\n"
_MAX_KEYS_BESIDE_ROWS = 4
_MESSAGE_KEYS = {"role", "from"}
_MAX_LABEL_CHARS = 100
_ROW_KEYS = {
    *("text", "content", "body", "question", "answer", "prompt", "completion", "response"),
    *("instruction", "input", "output", "chosen", "rejected"),
}
_MEANINGFUL_KEYS = {"system", "system_prompt", "context", "history", "split", "tools", "label", "train", "weight"}
"""They would hold for every row of a table, but the rows do not carry them."""

Row = dict[str, object]


def json_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a json file. A text in an array is a row with the key `text`.

    Raises:
        PreflightError: the file is not JSON, or a value is neither an object nor a text; the message gives the place.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = _Reader(path, file.read)
        is_array = reader.peek() == "["
        if is_array:
            reader.skip("[")
        for number, value in enumerate(reader.values(is_array)):
            if not is_array and isinstance(value, dict) and number == 0 and reader.peek() == "":
                yield from _rows_of_object(value, reader)
            else:
                yield _row(value, reader)


def _rows_of_object(value: Row, reader: _Reader) -> Iterator[Row]:
    """Yield the rows of a file that holds a single object.

    An object with one non-empty list, which holds objects, and few other keys, which hold no text, is a table: each
    object in the list is a row. Any other object is one row, and so is one whose list holds chat messages.

    Raises:
        PreflightError: a key beside the rows of a table may change their meaning.
    """
    lists = [items for items in value.values() if isinstance(items, list) and items]
    is_table = len(value) <= _MAX_KEYS_BESIDE_ROWS and len(lists) == 1 and all(isinstance(x, dict) for x in lists[0])
    if not is_table or _MESSAGE_KEYS & lists[0][0].keys() or _holds_text(value):
        yield value
        return
    if lost := sorted(key for key in value if key.lower() in _MEANINGFUL_KEYS and value[key] not in (None, "", [])):
        names = ", ".join(f"`{key}`" for key in lost)
        raise reader.error(f"{names} beside the list of rows would be lost; write the rows as jsonl, with it in each")
    for item in lists[0]:
        yield _row(item, reader)


def _holds_text(value: Row) -> bool:
    """Return whether an object has a text of its own, longer than a label or under a key that texts usually have."""
    return any(
        isinstance(item, str) and (key.lower() in _ROW_KEYS or len(item) > _MAX_LABEL_CHARS)
        for key, item in value.items()
    )


def _row(value: object, reader: _Reader) -> Row:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, dict):
        return value
    raise reader.error(f"expected an object or a text, found `{json.dumps(value)[:50]}`")


class _Reader:
    """Parses the values of a JSON text one after the other, and counts its lines."""

    def __init__(self, path: Path, read: Callable[[int], str]) -> None:
        self._path, self._read = path, read
        self._buffer, self._position, self._line, self._is_end = "", 0, 1, False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is not blank, empty at the end of the file."""
        while True:
            end = self._position
            while end < len(self._buffer) and self._buffer[end] in _BLANK:
                end += 1
            self._advance(end)
            if end < len(self._buffer) or self._is_end:
                return self._buffer[end : end + 1]
            self._fill(_READ_CHARS)

    def skip(self, character: str) -> None:
        """Skip the next character, which must be this one."""
        if self.peek() != character:
            raise self.error(f"expected `{character}`")
        self._advance(self._position + 1)

    def values(self, is_array: bool) -> Iterator[object]:
        """Yield the values of an array, whose `[` has been read already, or of a file of consecutive values."""
        is_first = True
        while following := self.peek():
            if is_array and following == "]":
                break
            if is_array and not is_first:
                self.skip(",")
                self.peek()
            is_first = False
            yield self._parse()
        if is_array:
            self.skip("]")
            if self.peek():
                raise self.error("expected the end of the file after the array")

    def error(self, problem: str, position: int | None = None) -> PreflightError:
        """Return an error at a position in the buffer, or at the value parsed last."""
        line = self._line + self._buffer.count("\n", self._position, position or self._position)
        return PreflightError(f"{self._path}:{line}: {problem}")

    def _parse(self) -> object:
        size = _READ_CHARS
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
                if end < len(self._buffer) or self._is_end:  # a number might continue in the characters not yet read
                    self._advance(end)
                    return value
            except json.JSONDecodeError as error:
                if self._is_end:
                    raise self.error(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:  # a number with too many digits; lists in lists in lists ...
                raise self.error(str(error)) from error
            if len(self._buffer) - self._position > _MAX_VALUE_CHARS:
                raise self.error(f"a value has more than {_MAX_VALUE_CHARS >> 20} MB, or is not JSON")
            self._fill(size)
            size *= 2

    def _advance(self, position: int) -> None:
        self._line += self._buffer.count("\n", self._position, position)
        self._position = position

    def _fill(self, size: int) -> None:
        block = self._read(size)
        self._buffer, self._position = self._buffer[self._position :] + block, 0
        self._is_end = not block
