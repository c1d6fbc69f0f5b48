"""JSON files that end with the sha256 of their own content, so that a changed byte is noticed when they are read."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from nanochat.storage.files import read_file, write_bytes

DIGEST_KEY = "content_sha256"
_END = re.compile(rb',\n "' + DIGEST_KEY.encode() + rb'": "([0-9a-f]{64})"\n\}\n\Z')


def write_checked(path: Path, text: str, *, durable: bool = True) -> None:
    """Write a JSON object that has at least one key, and add its digest as the last key; see `files.atomic_write`."""
    # Bytes of file names that are not UTF-8 become escapes such as \udce9, which JSON reads.
    body = text.rstrip().removesuffix("}").rstrip().encode(errors="backslashreplace")
    digest = hashlib.sha256(body).hexdigest()
    write_bytes(path, body + f',\n "{DIGEST_KEY}": "{digest}"\n}}\n'.encode(), durable=durable)


def is_digest_expected(path: Path) -> bool:
    """Return whether a file, perhaps a damaged one, was written by `write_checked`, and not by an earlier version."""
    try:
        return DIGEST_KEY.encode() in read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_checked(path: Path) -> str | None:
    """Return the text given to `write_checked`, or None if the file is missing or any byte of it has changed."""
    try:
        raw = read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    end = _END.search(raw)
    if end is None or hashlib.sha256(raw[: end.start()]).hexdigest() != end[1].decode():
        return None
    return raw[: end.start()].decode() + "\n}"
