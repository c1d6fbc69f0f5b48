"""Names the form of chat data, judged by the keys of its first row, for the plan and the report."""

from __future__ import annotations

from nanochat.tasks.chat_forms.mapping import ChatMap, mapped_keys
from nanochat.tasks.chat_forms.rows import DEFAULT_COLUMN, MESSAGE_KEYS, PAIR_KEYS


def form_name(value: object, *, column: str = DEFAULT_COLUMN, chat_map: ChatMap = ()) -> str:
    """Return what the form of a decoded row is called, such as "ShareGPT (`conversations`)"."""
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
        return "an unknown form"
    extra = [key for key in ("context", "input", "history") if key in value]
    kind = "Alpaca" if keys == ("instruction", "output") else "question and answer"
    return f"{kind} ({', '.join(f'`{key}`' for key in (keys[0], *extra, keys[1]))})"


def _messages_name(where: str, messages: object) -> str:
    rows = [row for row in messages if isinstance(row, dict)] if isinstance(messages, list) else []
    if rows and "from" in rows[0]:
        return f"ShareGPT ({where} with `from` and `value`)"
    parts = ", with content parts" if any(isinstance(row.get("content"), list) for row in rows) else ""
    return f"messages ({where}{parts})"
