"""Names the forms of chat data, judged by the keys of first rows, so that plans and reports can show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from nanochat.data.files.file_kinds import kind_of
from nanochat.data.files.formats.json_lines import json_lines
from nanochat.data.files.formats.parquet_footer import column_paths
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.ingest.store import readable_files
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.tasks.chat_forms.chat_exports import application_of
from nanochat.tasks.chat_forms.chat_rows import DEFAULT_COLUMN, MESSAGE_KEYS, PAIR_KEYS
from nanochat.tasks.chat_forms.mapping import ChatMap, mapped_keys

_JUDGED_FILES = 10
"""A plan names the forms of the chats in at most this number of files, because it opens each file."""
_LIST_LEVELS = ("list", "element", "item", "array", "bag")
"""Names of the levels that parquet files have between a list and its items."""


def chat_form(source: SourceSpec, paths: Sequence[Path], *, base: Path, is_planning: bool) -> str | None:
    """Return the names of the forms of the chats in the first few files, each judged by its first row that is JSON.

    Parquet files and converted copies are judged by the columns in their footer. None if there is no row. When
    planning, which must not import pyarrow, compressed files are not judged.

    Raises:
        PreflightError, StageError, ValueError, OSError: one of these files is damaged or not converted yet.
    """
    if source.chat_map:
        return form_name(None, chat_map=source.chat_map)
    files = readable_files(paths[:_JUDGED_FILES], base=base)
    forms = [_form_of_file(file, source.column, is_planning=is_planning) for file in files]
    return " and ".join(dict.fromkeys(form for form in forms if form is not None)) or None


def _form_of_file(file: ReadableFile, column: str, *, is_planning: bool) -> str | None:
    kind = kind_of(file.path)
    if kind is None or (is_planning and kind.compression is not None):
        return None
    if kind.reader == "parquet":
        return form_name(_example_row(column_paths(file.path)), column=column)
    first = next((line for line in json_lines(file.path) if line.problem is None), None)
    return None if first is None else form_name(first.value, column=column)


def _example_row(paths: Iterable[Sequence[str]]) -> dict[str, object]:
    """Return a row as `form_name` needs it, made from the paths of the leaf columns of a parquet file."""
    row: dict[str, object] = {}
    for key, *inner in paths:
        names = [name for name in inner if name not in _LIST_LEVELS]
        if not inner:
            row[key] = "text"
            continue
        message = row.setdefault(key, [{}])
        if names and isinstance(message, list):
            message[0][names[0]] = "text" if len(names) == 1 else [{}]
    return row


def form_name(value: object, *, column: str = DEFAULT_COLUMN, chat_map: ChatMap = ()) -> str:
    """Return the name of a decoded row's form, such as "ShareGPT (`conversations`)"."""
    if chat_map:
        return f"mapped from {', '.join(f'`{key}`' for key in mapped_keys(chat_map))}"
    if isinstance(value, list):
        return _messages_name("rows that are lists", value)
    if not isinstance(value, dict):
        return "an unknown form"
    if column != DEFAULT_COLUMN or isinstance(value.get(column), list):
        return _messages_name(f"`{column}`", value.get(column))
    if value.get("chosen"):
        return "preference pairs (`chosen`; `rejected` is not used)"
    for key in MESSAGE_KEYS:
        if key in value:
            return _messages_name(f"`{key}`", value[key])
    keys = next((keys for keys in PAIR_KEYS if all(key in value for key in keys)), None)
    if keys is None:
        application = application_of(value)
        return "an unknown form" if application is None else f"an export of {application}"
    extra = [key for key in ("context", "input", "history") if key in value]
    kind = "Alpaca" if keys == ("instruction", "output") else "question and answer"
    return f"{kind} ({', '.join(f'`{key}`' for key in (keys[0], *extra, keys[1]))})"


def _messages_name(where: str, messages: object) -> str:
    rows = [row for row in messages if isinstance(row, dict)] if isinstance(messages, list) else []
    if rows and "from" in rows[0]:
        return f"ShareGPT ({where} with `from` and `value`)"
    parts = ", with content parts" if any(isinstance(row.get("content"), list) for row in rows) else ""
    return f"messages ({where}{parts})"
