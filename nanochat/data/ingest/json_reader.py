"""Parses the values of a json file one at a time, and continues after those that are not JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial

from nanochat.data.files.formats.json_lines import TOO_DEEP
from nanochat.data.ingest.row_tables import UnreadableFileError, read_integer

_READ_CHARS = 1 << 20
_MAX_VALUE_CHARS = 1 << 28
_BLANK = " \t\r\n"
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{},]|[^"\[\]{},]++', re.DOTALL)
_LINE_WITH_VALUE = re.compile(r'\n(?=[{\["])')


class JsonReader:
    """Parses the values of a JSON text one after the other, and counts its lines and characters."""

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read = read
        self._buffer, self._position, self._line, self._is_end = "", 0, 1, False
        self._decoder, self.chars = json.JSONDecoder(), 0

    def peek(self) -> str:
        """Return the next character that is not blank, or an empty text at the end of the file."""
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
            raise self._error(f"expected `{character}`")
        self._advance(self._position + 1)

    def values(self, is_array: bool) -> Iterator[tuple[str, object, str | None]]:
        """Yield the place of each value of an array or a file, and the value or what is wrong with it.

        The `[` of an array has been read already.
        """
        number = 0
        while following := self.peek():
            if is_array and following == "]":
                break
            if is_array and number:
                self.skip(",")
                self.peek()
            number += 1
            place = f":{self._line}" + (f" element {number}" if is_array else "")
            yield (place, *self._parse(self._end_of_element if is_array else partial(self._end_of_value, number == 1)))
        if is_array:
            self.skip("]")
            if self.peek():
                raise self._error("expected the end of the file after the array; write one array of all rows, or jsonl")

    def _error(self, problem: str, position: int | None = None) -> UnreadableFileError:
        """Return an error at a position in the buffer, or at the value parsed last."""
        line = self._line + self._buffer.count("\n", self._position, position or self._position)
        return UnreadableFileError(f":{line}: {problem}")

    def _parse(self, end_of_bad_value: Callable[[int], int | None]) -> tuple[object, str | None]:
        """Return the next value, or what is wrong with it, and move past it.

        `end_of_bad_value` takes the position of an error and returns where a value that is not JSON ends. None if the
        value may be JSON that continues in the part of the file not read yet, or if its end cannot be found.
        """
        size = _READ_CHARS
        while True:
            position, end = self._position, None
            try:
                value, after = self._decode()
                if after < len(self._buffer) or self._is_end:  # a number might continue in the characters not yet read
                    self._advance(after)
                    return value, None
            except json.JSONDecodeError as error:
                reason = error.msg.removesuffix(" at").removesuffix(" starting")  # the position follows elsewhere
                problem, position = f"not JSON: {reason}", error.pos
                end = end_of_bad_value(position)
            except RecursionError:
                problem = TOO_DEEP
                end = end_of_bad_value(position)
            if end is not None:
                lines = self._buffer.count("\n", self._position, position)
                problem += f" in line {self._line + lines:,}" if lines else ""
                self._advance(end)
                return None, problem
            if self._is_end:
                raise self._error(f"{problem}; is the file cut off?", position)
            if len(self._buffer) - self._position > _MAX_VALUE_CHARS:
                raise self._error(f"a value has more than {_MAX_VALUE_CHARS >> 20} MB, or is not JSON")
            self._fill(size)
            size *= 2

    def _decode(self) -> tuple[object, int]:
        try:
            return self._decoder.raw_decode(self._buffer, self._position)
        except json.JSONDecodeError:
            raise
        except ValueError:  # an integer with too many digits; calling a function for each one is slower
            self._decoder = json.JSONDecoder(parse_int=read_integer)
            return self._decoder.raw_decode(self._buffer, self._position)

    def _end_of_element(self, _: int) -> int | None:
        """Return the position of the `,` or `]` after an element of an array, if its brackets are balanced."""
        depth, position = 0, self._position
        while (token := _TOKEN.match(self._buffer, position)) is not None:
            match token[0]:
                case "[" | "{":
                    depth += 1
                case "]" | "}" if depth:
                    depth -= 1
                case "," | "]" if not depth:
                    return position
                case "}":
                    return None
            position = token.end()
        return None

    def _end_of_value(self, is_first: bool, error: int) -> int | None:
        """Return the position of the next line that begins a value, or else of the end of the file.

        Return None if the error is in a later line of the file's first value: a value of several lines is the only one
        in its file, so no later line begins a new value.
        """
        if is_first and "\n" in self._buffer[self._position : error]:
            return None
        if "\n" not in self._buffer[error:] and not self._is_end:  # a token has no line end, so it may continue
            return None
        if (line := _LINE_WITH_VALUE.search(self._buffer, error)) is not None:
            return line.end()
        return len(self._buffer) if self._is_end and not is_first else None

    def _advance(self, position: int) -> None:
        self._line += self._buffer.count("\n", self._position, position)
        self.chars += position - self._position
        self._position = position

    def _fill(self, size: int) -> None:
        block = self._read(size)
        self._buffer, self._position = self._buffer[self._position :] + block, 0
        self._is_end = not block
