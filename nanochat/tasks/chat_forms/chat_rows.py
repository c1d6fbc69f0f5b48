"""Turns a row of chat data into a conversation, whichever of these forms it has.

    {"messages": [{"role": "user", "content": "..."}, ...], "ideal"?: "..."}     also under `conversations`
    [{"role": "user", "content": "..."}, ...]
    {"question": "...", "answer": "..."}     {"prompt": "...", "completion": "..."}     {"instruction", "output"}
    {"prompt": "...", "chosen": "...", "rejected": "..."}     also with lists of messages
    {"mapping": {...}, "current_node": "..."}     {"chat_messages": [...]}     exported by ChatGPT and by Claude

The `map` of a source reads any other form. With each form go `system`, and `weight`, `train` or `label`, which are
false for a row that is not to be trained on.
Beside a question, `context` and `input` become part of it, and `history` holds earlier turns, which are not trained on.
"""

from __future__ import annotations

import itertools

from nanochat.data.files.formats.json_lines import SHOWN_KEYS
from nanochat.data.splits import SPLIT_KEYS, canonical_split, held_out_by
from nanochat.plurals import list_names, several
from nanochat.tasks.chat_forms.chat_exports import TREE_KEYS, application_of, parse_export
from nanochat.tasks.chat_forms.keys import (
    FLAGS,
    check_unread,
    is_long_text_refused,
    may_change_meaning,
    present,
    take_flags,
)
from nanochat.tasks.chat_forms.mapping import ChatMap, mapped_keys, parse_mapped
from nanochat.tasks.chat_forms.messages import as_conversation, decode_list, json_type, parse_messages, text_of
from nanochat.tasks.chat_forms.preferences import PROMPT_KEYS, prepare_pair, take_chosen
from nanochat.tasks.chat_forms.row_errors import BadConversation, NotText, UntrainedRow
from nanochat.tokenizer.chat_format import Conversation, Message

DEFAULT_COLUMN = "text"
"""The value of `column` that a source has unless its recipe names another one."""
MESSAGE_KEYS = ("messages", "conversations", "conversation")
PAIR_KEYS = (
    ("question", "answer"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
)
SYSTEM_KEYS = ("system", "system_prompt", "system_message")
_USED_KEYS = {
    "chosen",
    "context",
    "input",
    "history",
    "ideal",
    *MESSAGE_KEYS,
    *TREE_KEYS,
    *SYSTEM_KEYS,
    *FLAGS,
    *SPLIT_KEYS,
    *itertools.chain(*PAIR_KEYS),
}


def is_needed(key: str, *, is_nested: bool, column: str = DEFAULT_COLUMN, chat_map: ChatMap = ()) -> bool:
    """Return whether `parse_row` must see a key: it is part of a form, or may change the meaning of the row."""
    if chat_map:
        return key in FLAGS or key in mapped_keys(chat_map)
    is_column = key == column and (is_nested or column != DEFAULT_COLUMN)
    may_be_text = not is_nested and is_long_text_refused(key)
    return is_column or may_be_text or key in _USED_KEYS or may_change_meaning(key, is_nested=is_nested)


def parse_row(
    value: object,
    ignored: set[str],
    *,
    column: str = DEFAULT_COLUMN,
    chat_map: ChatMap = (),
    cut: list[NotText] | None = None,
) -> Conversation:
    """Return the conversation in a decoded row, and add the keys that were not read to `ignored`.

    Args:
        value: the row.
        ignored: receives names of keys.
        column: the key that holds the conversation. With the default, the row may have any form.
        chat_map: the source's `map`. It and the flags decide alone what is read; all other keys are ignored.
        cut: receives the reason why the conversation is read only up to some message.

    Raises:
        LeftOutRow: the row says that it is not to be trained on, or it has no answer that can be.
        BadConversation: the row has another form, or a key that is not supported.
    """
    if chat_map:
        if not isinstance(value, dict):
            raise BadConversation(f"expected an object with the keys that `map` names, found {json_type(value)}")
        return as_conversation(_take_mapped(value, chat_map, ignored))
    if isinstance(value, list):
        if value and all(isinstance(row, dict) and not {"role", "from"} & row.keys() for row in value):
            rows = several(len(value), "row")
            raise BadConversation(f"this is a JSON array of {rows}; write one object on each line (`jq -c '.[]' FILE`)")
        return as_conversation(parse_messages(value, ignored))
    if not isinstance(value, dict):
        raise BadConversation(f"expected an object or a list of messages, found {json_type(value)}")
    row = present(value)
    _take_row_flags(row)
    _take_row_split(row)
    system = _take_system(row)
    messages = _take_messages(row, value, ignored, column, [] if cut is None else cut)
    check_unread(row, ignored)
    if system is not None and messages and messages[0].role == "system":
        if messages[0].text() != system:
            raise BadConversation("the row has both a top-level system message and one in its messages; keep one")
    elif system is not None:
        messages.insert(0, Message("system", system))
    return as_conversation(messages)


def _take_row_flags(row: dict[str, object]) -> None:
    flag = take_flags(row)
    if flag is not None and not flag[1]:
        raise UntrainedRow(f"`{flag[0]}` says that the row is not to be trained on")


def _take_row_split(row: dict[str, object]) -> None:
    """Remove the keys that name the split of the row, if it is `train`."""
    if (reason := held_out_by(row)) is not None:
        raise UntrainedRow(f"`{reason}` says that the row is not to be trained on")
    for key in SPLIT_KEYS:
        if canonical_split(str(row.get(key, "")).strip()) == "train":
            del row[key]


def _take_mapped(value: dict[object, object], chat_map: ChatMap, ignored: set[str]) -> list[Message]:
    others = {str(key): cell for key, cell in value.items() if key not in mapped_keys(chat_map)}
    flags = present({key: others[key] for key in FLAGS if key in others})
    _take_row_flags(flags)
    ignored.update(others.keys() - set(FLAGS))
    return parse_mapped(value, chat_map)


def _take_system(row: dict[str, object]) -> str | None:
    given = [key for key in SYSTEM_KEYS if key in row]
    if len(given) > 1:
        raise BadConversation(f"the row has `{given[0]}` and `{given[1]}`; keep one")
    return text_of(row.pop(given[0]), given[0]) if given else None


def _take_messages(
    row: dict[str, object], value: dict[object, object], ignored: set[str], column: str, cut: list[NotText]
) -> list[Message]:
    """Return the messages of a row without its `system`, and remove the keys that were used."""
    if column != DEFAULT_COLUMN or isinstance(row.get(column), list):
        if column not in value:
            raise BadConversation(f"no key `{column}` (the source's `column`); the keys are: {_keys(value)}")
        return _take_list(row, value, column, ignored, cut)
    if "chosen" in row:
        return _take_preferred(row, value, ignored)
    for key in MESSAGE_KEYS:
        if key in value and (key in row or not any(other in row for other in MESSAGE_KEYS)):
            return _take_list(row, value, key, ignored, cut)
    for keys in PAIR_KEYS:
        if all(key in value for key in keys):
            return _take_pair(row, value, keys, ignored)
    if application_of(value) is not None:
        row.clear()
        return parse_export(value, ignored, cut)
    raise BadConversation(
        f"expected `messages`, or question/answer, or prompt/completion; keys: {_keys(value)}; if another key "
        "holds the messages, set the source's `column` to it; if two keys hold a question and its answer, set "
        '`map: {user: "{KEY}", assistant: "{OTHER_KEY}"}`'
    )


def _take_preferred(row: dict[str, object], value: dict[object, object], ignored: set[str]) -> list[Message]:
    prepare_pair(row, MESSAGE_KEYS, ignored)
    prompt = next((key for key in (*PROMPT_KEYS, *MESSAGE_KEYS) if key in row), None)
    if prompt in PROMPT_KEYS and isinstance(row[prompt], str) and isinstance(row["chosen"], str):
        return _take_pair(row, value, (prompt, "chosen"), ignored)
    return take_chosen(row, prompt, ignored)


def _take_list(
    row: dict[str, object], value: dict[object, object], key: str, ignored: set[str], cut: list[NotText]
) -> list[Message]:
    content = decode_list(row.pop(key, value[key]), key)
    if isinstance(content, dict):  # a whole row of any form, under the key that `column` names
        return list(parse_row(content, ignored, cut=cut).messages)
    if not isinstance(content, list) or not content:
        raise BadConversation(f"`{key}` must be a list of messages, found {json_type(content)}")
    messages = parse_messages(content, ignored)
    _drop_repeated_question(row, messages, ignored)
    ideal = row.pop("ideal", None)
    if messages[-1].role == "user" and ideal is not None:
        messages.append(Message("assistant", text_of(ideal[0] if isinstance(ideal, list) else ideal, "ideal")))
    elif ideal is not None:
        ignored.add("ideal")
    return messages


def _drop_repeated_question(row: dict[str, object], messages: list[Message], ignored: set[str]) -> None:
    """Ignore a `prompt` or `question` beside messages that only repeats the first message of the user."""
    first = next((message.text() for message in messages if message.role == "user"), None)
    for key in ("prompt", "question", "instruction"):
        if key in row and row[key] == first:
            del row[key]
            ignored.add(key)


def _take_pair(
    row: dict[str, object], value: dict[object, object], keys: tuple[str, str], ignored: set[str]
) -> list[Message]:
    asked, answered = (row.pop(key, value[key]) for key in keys)
    if isinstance(asked, list) and isinstance(answered, list):
        return [*parse_messages(asked, ignored, is_trained=False), *parse_messages(answered, ignored)]
    texts = [text_of(asked, keys[0])]
    if "context" in row:
        texts.insert(0, text_of(row.pop("context"), "context"))
    if "input" in row:
        texts.append(text_of(row.pop("input"), "input"))
    history = _history(decode_list(row.pop("history", []), "history"), ignored)
    return [*history, Message("user", "\n\n".join(texts)), Message("assistant", text_of(answered, keys[1]))]


def _history(value: object, ignored: set[str]) -> list[Message]:
    """Return the turns before the question: a list of messages, or of [question, answer] pairs. None is trained on."""
    if not isinstance(value, list):
        raise BadConversation(f"`history` must be a list of messages or of pairs, found {json_type(value)}")
    if not all(isinstance(turn, list) for turn in value):
        return parse_messages(value, ignored, is_trained=False)
    messages = []
    for turn in value:
        if len(turn) != 2:
            raise BadConversation(
                f"`history` must hold pairs of a question and an answer, found {several(len(turn), 'text')}"
            )
        messages += [
            Message("user", text_of(turn[0], "history")),
            Message("assistant", text_of(turn[1], "history"), False),
        ]
    return messages


def _keys(value: dict[object, object]) -> str:
    return list_names(map(str, value), most=SHOWN_KEYS) or "none"
