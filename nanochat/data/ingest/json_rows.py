"""Reads the rows of a json file in parts of bounded size, without changing any value.

The file is one of these: an array of objects, texts or conversations; an object that holds such an array under one of
its keys; a single object; or values one after the other. The `json` builder of `datasets` is not used here: it turns
texts that look like dates into dates, refuses long numbers, and reads an array whole into memory.
Not here: parsing the values, and finding the next one after a value that is not JSON (`json_reader`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from nanochat.data.files.formats.encodings import encoding_problem
from nanochat.data.files.formats.streams import open_text
from nanochat.data.ingest.json_reader import JsonReader
from nanochat.data.ingest.row_tables import FoundRow, Row, UnreadableFileError

_MAX_KEYS_BESIDE_ROWS = 4
_MESSAGE_KEYS = {"role", "from"}
_CHAT_SENDERS = ("human", "assistant")  # of messages that Claude exports; rows of mails have other senders
_MAX_LABEL_CHARS = 100
_ROW_KEYS = {
    *("text", "content", "body", "question", "answer", "prompt", "completion", "response"),
    *("instruction", "input", "output", "chosen", "rejected"),
}
_MEANINGFUL_KEYS = {"system", "system_prompt", "context", "history", "split", "tools", "label", "train", "weight"}
"""Keys beside a list of rows that apply to every row. Reading only the rows would lose them."""


def json_rows(path: Path) -> Iterator[FoundRow]:
    """Yield the rows of a json file. In an array, a text is a row with the key `text`, and a list of messages is a row
    with the key `messages`. Other values are bad rows, and so are values that are not JSON.

    Raises:
        UnreadableFileError: the file is not JSON, or it is cut off.
    """
    if (problem := encoding_problem(path)) is not None:
        yield FoundRow("", {}, problem)
        return
    with open_text(path) as file:
        reader = JsonReader(file.read)
        is_array = reader.peek() == "["
        if is_array:
            reader.skip("[")
        for number, (place, value, problem) in enumerate(reader.values(is_array)):
            chars, reader.chars = reader.chars, 0
            if problem is not None:
                yield FoundRow(place, {}, problem)
            elif not is_array and isinstance(value, dict) and number == 0 and reader.peek() == "":
                yield from _rows_of_object(value, place)
            else:
                yield _row(value, place, chars)


def _rows_of_object(value: Row, place: str) -> Iterator[FoundRow]:
    """Yield the rows of a file that holds a single object.

    An object with one non-empty list, which begins with an object or a conversation, and few other keys, which hold no
    text, is a table: each item of the list is a row. Any other object, such as one of messages, is one row.

    Raises:
        UnreadableFileError: a key beside the rows of a table may change their meaning.
    """
    lists = [(key, items) for key, items in value.items() if isinstance(items, list) and items]
    is_table = len(value) <= _MAX_KEYS_BESIDE_ROWS and len(lists) == 1 and _is_row(lists[0][1][0])
    if not is_table or _holds_text(value):
        yield FoundRow(place, value)
        return
    if lost := sorted(key for key in value if key.lower() in _MEANINGFUL_KEYS and value[key] not in (None, "", [])):
        names = ", ".join(f"`{key}`" for key in lost)
        raise UnreadableFileError(
            f"{place}: {names} beside the list of rows would be lost; "
            f"write the rows as jsonl, and repeat {names} in each row"
        )
    key, items = lists[0]
    for number, item in enumerate(items, start=1):
        yield _row(item, f" `{key}` element {number}")


def _is_row(value: object) -> bool:
    """Return whether an item of a list is a row: an object that is no message, or a conversation."""
    return not _is_message(value) if isinstance(value, dict) else _is_conversation(value)


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and bool(value) and _is_message(value[0])


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and (bool(_MESSAGE_KEYS & value.keys()) or value.get("sender") in _CHAT_SENDERS)


def _holds_text(value: Row) -> bool:
    """Return whether an object has a text of its own, longer than a label or under a key that texts usually have."""
    return any(
        isinstance(item, str) and (key.lower() in _ROW_KEYS or len(item) > _MAX_LABEL_CHARS)
        for key, item in value.items()
    )


def _row(value: object, place: str, chars: int = 0) -> FoundRow:
    match value:
        case str():
            return FoundRow(place, {"text": value}, chars=chars)
        case dict():
            return FoundRow(place, value, chars=chars)
        case list() if _is_conversation(value):
            return FoundRow(place, {"messages": value}, chars=chars)
    found = "a list" if isinstance(value, list) else f"`{json.dumps(value, default=lambda _: 'a long number')[:50]}`"
    return FoundRow(place, {}, f"expected an object, a text or a list of messages, found {found}")
