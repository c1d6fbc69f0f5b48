"""Lines of a jsonl file, read one at a time from a cursor on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.data.files.cursors import START, Cursor
from nanochat.data.files.formats.encodings import encoding_problem, not_utf8
from nanochat.data.files.formats.streams import raw_lines
from nanochat.plurals import list_names, several

HALF_PAIR = "holds half of a surrogate pair (an escape such as \\ud83d on its own)"
SHOWN_KEYS = 10
"""Keys of a row, or columns, that a message names."""
TOO_DEEP = "JSON nested too deeply"


def long_number() -> str:
    """Return the problem with a row that holds an integer which Python refuses to read."""
    return f"holds a number of more than {sys.get_int_max_str_digits():,} digits; store it as text"


@dataclass(frozen=True)
class JsonLine:
    """A line of a jsonl file: its value, or `problem`, which says why it has none."""

    path: Path
    line: int
    value: object
    problem: str | None
    next_byte: int

    def where(self) -> str:
        """Return `file:line`."""
        return f"{self.path}:{self.line}"

    def text_in(self, key: str) -> str:
        """Return the text of a key; empty if the text is null.

        Raises:
            ValueError: there is no such text. The message says why.
        """
        if self.problem is not None:
            raise ValueError(self.problem)
        if not isinstance(self.value, dict):
            raise ValueError(f"expected an object, found {found_type(self.value)}")
        if key not in self.value:
            raise ValueError(f"no key `{key}`; its keys are: {list_names(map(str, self.value), most=SHOWN_KEYS)}")
        text = self.value[key]
        if not isinstance(text, str | None):
            raise ValueError(f"`{key}` is {type(text).__name__}, not text")
        return text or ""


def json_lines(path: Path, cursor: Cursor = START) -> Iterator[JsonLine]:
    """Yield the lines of a jsonl file from `cursor` on, without blank ones; a bad line carries its problem.

    A file that is not UTF-8 text gives a single bad line.

    Raises:
        PreflightError: the file cannot be opened.
    """
    offset, number = cursor[:2]
    if not offset and (problem := encoding_problem(path)) is not None:
        if not number:
            yield JsonLine(path, 1, None, problem, 0)
        return
    for raw in raw_lines(path, offset):
        offset += len(raw)
        number += 1
        if raw.strip(b"\xef\xbb\xbf \t\r\n"):
            value, problem = parse_line(raw)
            yield JsonLine(path, number, value, problem, offset)


def parse_line(raw: bytes) -> tuple[object, str | None]:
    """Return a line's value, and what is wrong with the line."""
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return None, not_utf8(error)
    except UnicodeEncodeError:
        return None, HALF_PAIR
    except json.JSONDecodeError as error:
        is_pretty = text.strip() in ("[", "{", "[{")
        hint = "; the file seems to be one JSON document: write one object on each line" if is_pretty else ""
        return None, f"not JSON: {error.msg} at column {error.colno}{hint}"
    except ValueError:
        return None, long_number()
    except RecursionError:
        return None, TOO_DEEP
    return value, None


def found_type(value: object) -> str:
    """Return the type of a line's value for a message; for a list of rows, with what to do about it."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        rows = several(len(value), "row")
        return f"list; this is a JSON array of {rows}: write one object on each line (`jq -c '.[]' FILE`)"
    return type(value).__name__
