"""Passes values between the judge and the program as plain data, so that the judge receives no object of the program.

These types cross: None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range, and
iterators (with all their items). An instance of a subclass, such as a Counter or a named tuple, arrives as its base
type, so an overridden `__eq__` does not reach the judge. Other types do not cross.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

MAX_FRAME_BYTES = 16 * 2**20
_SIZE_BYTES = 4
_SEQUENCES: tuple[type, ...] = (tuple, set, frozenset)
_BYTES: tuple[type, ...] = (bytes, bytearray)
_OF_ITEMS: dict[str, Callable[[list[Any]], Any]] = {
    **{kind.__name__: kind for kind in _SEQUENCES},
    "range": lambda numbers: range(*numbers),
    "iterator": iter,
}
_MAX_PLAIN_BITS = 64
"""Larger integers are written in base 16, because Python limits the length of decimal numbers."""


def dump(value: object) -> bytes:
    """Return a value as bytes. Raises TypeError if a type cannot cross, and RecursionError for cycles."""
    return json.dumps(_plain(value)).encode()


def load(data: bytes) -> Any:
    """Return the value of which `dump` made `data`, with new objects of exactly the types listed above.

    Raises ValueError for any other bytes.
    """
    try:
        return _value(json.loads(data))
    except (TypeError, KeyError, RecursionError, OverflowError, MemoryError) as error:
        raise ValueError(f"not a value: {error}") from error


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | float | str):
        return value
    if isinstance(value, int):
        return value if value.bit_length() < _MAX_PLAIN_BITS else {"int": hex(value)}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, range):
        return {"range": [_plain(number) for number in (value.start, value.stop, value.step)]}
    if isinstance(value, Iterator):
        return {"iterator": [_plain(item) for item in value]}
    for kind in _SEQUENCES:
        if isinstance(value, kind):
            return {kind.__name__: [_plain(item) for item in value]}  # type: ignore[attr-defined]
    for kind in _BYTES:
        if isinstance(value, kind):
            return {kind.__name__: value.hex()}  # type: ignore[attr-defined]
    raise TypeError(f"a value of the type {type(value).__name__} cannot pass between program and tests")


def _value(data: Any) -> Any:
    if isinstance(data, list):
        return [_value(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    match tag:
        case "int":
            return int(content, 16)
        case "dict":
            return {_value(key): _value(item) for key, item in content}
        case "complex":
            return complex(*content)
        case "bytes":
            return bytes.fromhex(content)
        case "bytearray":
            return bytearray.fromhex(content)
    return _OF_ITEMS[tag]([_value(item) for item in content])


def update(old: Any, new: Any) -> None:
    """Change `old` in place to equal `new`: the program changed its copy of an argument in that way.

    Where the types differ, `old` stays as it is.
    """
    if type(old) is not type(new):
        return
    match old:
        case list() if len(old) == len(new):
            for index, item in enumerate(new):
                old[index] = _updated(old[index], item)
        case list():
            old[:] = new
        case tuple() if len(old) == len(new):
            for before, after in zip(old, new, strict=True):
                update(before, after)
        case dict():
            merged = {key: _updated(old[key], item) if key in old else item for key, item in new.items()}
            old.clear()
            old.update(merged)
        case set():
            old.clear()
            old.update(new)
        case bytearray():
            old[:] = new


def _updated(old: Any, new: Any) -> Any:
    """Return `old`, changed in place so that other references see it too, or `new` if that does not make it equal."""
    update(old, new)
    return old if type(old) is type(new) and old == new else new


def write_frame(descriptor: int, data: bytes) -> None:
    """Write bytes preceded by their number. Raises ValueError if there are more than `MAX_FRAME_BYTES`."""
    if len(data) > MAX_FRAME_BYTES:
        raise ValueError(f"{len(data):,} bytes of data; at most {MAX_FRAME_BYTES:,} can pass between program and tests")
    rest = memoryview(len(data).to_bytes(_SIZE_BYTES, "big") + data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def read_frame(descriptor: int) -> bytes:
    """Return the bytes of a frame. Raises EOFError if the other end was closed, and ValueError if it is too large."""
    size = int.from_bytes(_read_exactly(descriptor, _SIZE_BYTES), "big")
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"{size:,} bytes of data; at most {MAX_FRAME_BYTES:,} can pass between program and tests")
    return _read_exactly(descriptor, size)


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(descriptor, size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
