"""The file with the result of an evaluation's finished suite. It also vouches for the table of the suite's examples.

The file names the stage folder that it was written for, so that the result of another model is not taken for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nanochat.storage.checked_json import read_checked, write_checked
from nanochat.storage.files import sha256_of_file, write_bytes
from nanochat.storage.layout import StageFolder


def write_suite(folder: StageFolder, name: str, result: Mapping[str, Any]) -> None:
    """Store the result of a suite, which marks it as finished. Its table must be complete if it has one."""
    write_checked(folder.suite(name), json.dumps({**result, **_circumstances(folder, name)}, indent=1))


def read_suite(folder: StageFolder, name: str) -> dict[str, Any] | None:
    """Return the stored result of a suite.

    It is None if the suite is not finished, or if the file or the table is damaged, missing or of a different stage.
    """
    content = read_checked(folder.suite(name))
    result: dict[str, Any] = {} if content is None else json.loads(content)
    expected = _circumstances(folder, name)
    return result if expected.items() <= result.items() else None


def copy_suite(name: str, source: StageFolder, target: StageFolder) -> bool:
    """Copy a suite's table and then its result. Return whether there was an undamaged result to copy."""
    result = read_suite(source, name)
    if result is None:
        return False
    try:
        table = source.table(name).read_bytes() if result["table_sha256"] is not None else None
    except FileNotFoundError:  # `gc` deleted it in the meantime
        return False
    if table is not None:
        write_bytes(target.table(name), table)
    write_suite(target, name, result)
    return read_suite(target, name) is not None


def _circumstances(folder: StageFolder, name: str) -> dict[str, Any]:
    """Return the stage that a suite's result belongs to, and the digest of the suite's table."""
    table = folder.table(name)
    try:
        digest = sha256_of_file(table)
    except FileNotFoundError:
        digest = None
    return {"stage": f"{folder.stage}/{folder.path.name}", "table_sha256": digest}
