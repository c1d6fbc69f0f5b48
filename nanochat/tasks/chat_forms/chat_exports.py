"""Reads the conversations that ChatGPT and Claude export as `conversations.json`.

    {"mapping": {ID: {"message": {"author": {"role"}, "content": {"parts": [TEXT]}}, "parent": ID}}, "current_node": ID}
    {"chat_messages": [{"sender": "human" | "assistant", "content": [{"type": "text", "text": TEXT}]}]}

Both hold trees of messages. The conversation is the path from the root to `current_node`, or to the last message;
answers that were generated again and questions that were edited are not read. Messages of one speaker that follow each
other are joined, with an empty line between them.
Thoughts, hidden context and descriptions are ignored. Pictures, attached files and calls of tools cannot be trained on
as text, and answers may depend on them. So a conversation is read up to the first of them, because no earlier answer
depends on it, and up to its last answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from nanochat.tasks.chat_forms.keys import present, take_flags
from nanochat.tasks.chat_forms.message_trees import last_leaf, path_to
from nanochat.tasks.chat_forms.messages import items_of, json_type, object_of, role_of, text_of
from nanochat.tasks.chat_forms.row_errors import BadConversation, LeftOutRow, NotText
from nanochat.tokenizer.chat_format import Message

TREE_KEYS = ("mapping", "current_node", "chat_messages", "current_leaf_message_uuid")
_READ_KEYS = {"author", "content", "weight", "recipient", "metadata", "channel"}
_READ_KEYS_OF_CLAUDE = {"uuid", "sender", "text", "content", "parent_message_uuid"}
_IGNORED_CONTENT = {"thoughts", "reasoning_recap", "user_editable_context", "model_editable_context"}
_IGNORED_BLOCKS = {"thinking", "redacted_thinking", "token_budget"}
"""Thoughts, context and counts, which are not part of a conversation."""
_MEMORY_TOOL = "bio"
"""ChatGPT writes to its memory with this tool, and no answer depends on what it returns."""
_HIDDEN = "is_visually_hidden_from_conversation"
_CITATION = re.compile("\ue200|【\\d+(:\\d+)?†")
"""Marks of ChatGPT that refer to results of a search, or to something else that the page shows."""
_LOST_BLOCK = "This block is not supported on your current device yet."
"""Takes the place of tools in the `text` of Claude's messages."""
_FILE_KEYS = ("attachments", "files", "files_v2", "sync_sources")
_FILE, _TOOL = "a picture or a file", "a tool"
_NO_PARENT = "00000000-0000-"
"""Beginning of the parent that Claude's first message names."""

_Turn = tuple[Message, str, str]
"""A message, what joins it to the one before if both are from the same speaker, and its place for error messages."""


def application_of(row: Mapping[object, object]) -> str | None:
    """Return the application that exported a row with these keys; None for rows of other forms."""
    mapping = row.get("mapping")
    if mapping is not None and ("current_node" in row or isinstance(mapping, dict)):
        return "ChatGPT"
    return "Claude" if row.get("chat_messages") is not None else None


def parse_export(row: Mapping[object, object], ignored: set[str], cut: list[NotText]) -> list[Message]:
    """Return the messages of a row for which `application_of` names an application, up to the first that is not text.

    If messages are left out, `cut` receives the reason.

    Raises:
        LeftOutRow: no answer is left.
        BadConversation: the tree or a message is broken; the error names it.
    """
    ignored.update(present(row).keys() - set(TREE_KEYS))
    messages: list[Message] = []
    reason: NotText | None = None
    turns = _chatgpt(row, ignored) if application_of(row) == "ChatGPT" else _claude(row, ignored)
    try:
        for message, gap, where in turns:
            _append(messages, message, gap, where)
    except NotText as error:
        reason = error
        if not error.is_question and messages and messages[-1].role == "assistant":
            messages.pop()  # the beginning of an answer that continued with a tool
    if reason is None and (not messages or messages[-1].role == "user"):
        reason = NotText("a question without an answer", "its last question has no answer", is_question=True)
    while messages and messages[-1].role == "user":
        messages.pop()
    if reason is not None and all(message.role == "system" for message in messages):
        raise LeftOutRow(f"{reason}, and no answer is before it")
    cut += [] if reason is None else [reason]
    return messages


def _append(messages: list[Message], message: Message, gap: str, where: str) -> None:
    """Add a message, or join it to the one before if both are from the same speaker."""
    if messages and messages[-1].role == message.role:
        before = messages.pop()
        if before.is_trained != message.is_trained:
            raise BadConversation(f"{where} continues an answer, so both must be trained on or neither")
        text = gap.join(filter(None, (before.text(), message.text())))
        message = Message(message.role, text, message.is_trained)
    messages.append(message)


def _chatgpt(row: Mapping[object, object], ignored: set[str]) -> Iterator[_Turn]:
    mapping = object_of(row["mapping"], "`mapping`")
    nodes = {key: object_of(node, f"`{key}` of `mapping`") for key, node in mapping.items()}
    parents = {key: str(node["parent"]) if "parent" in node else None for key, node in nodes.items()}
    gap, is_first = "", True
    for key in path_to(parents, str(row.get("current_node") or last_leaf(nodes))):
        value = object_of(nodes[key].get("message"), f"the message of `{key}`")
        if not value or (message := _chatgpt_message(value, key, ignored, is_first=is_first)) is None:
            continue
        yield message, gap, f"message `{key}`"
        is_first = is_first and message.role == "system"
        details = object_of(object_of(value.get("metadata"), "`metadata`").get("finish_details"), "`finish_details`")
        gap = "" if details.get("type") == "max_tokens" else "\n\n"  # "Continue generating" continues within a sentence


def _chatgpt_message(value: dict[str, object], key: str, ignored: set[str], *, is_first: bool) -> Message | None:
    """Return a message, or None if it has nothing to train on."""
    author = object_of(value.get("author"), f"message `{key}`: `author`")
    content = object_of(value.get("content"), f"message `{key}`: `content`")
    metadata = object_of(value.get("metadata"), f"message `{key}`: `metadata`")
    role, kind = author.get("role"), str(content.get("content_type", "text"))
    where = f"message `{key}` ({role}): "
    ignored.update(value.keys() - _READ_KEYS)
    is_question = role == "user"
    if kind in _IGNORED_CONTENT or value.get("channel") == "analysis":
        ignored.add(kind if kind in _IGNORED_CONTENT else "analysis")
        return None
    tool = author.get("name", "tool") if role == "tool" else value.get("recipient", "all")
    if tool != "all":
        if tool != _MEMORY_TOOL and (kind != "text" or _chatgpt_text(content, where, is_question=False)):
            problem = f"{where}it is to or from the tool `{tool}`, on which the answer may depend"
            raise NotText(_TOOL, problem, is_question=False)
        ignored.add(str(tool))
        return None
    if kind not in ("text", "multimodal_text"):
        raise NotText(_TOOL, f"{where}its content is `{kind}`, not text", is_question=is_question)
    if "attachments" in metadata:
        problem = f"{where}it has attached files (`attachments`), which are not in the export as text"
        raise NotText(_FILE, problem, is_question=is_question)
    text = _chatgpt_text(content, where, is_question=is_question)
    if metadata.get(_HIDDEN):
        if is_question and text and not is_first:
            problem = f"{where}it is hidden (`{_HIDDEN}`), but the answer after it may depend on it"
            raise NotText("hidden context", problem, is_question=True)
        ignored.add(_HIDDEN)
        return None
    if _CITATION.search(text):
        problem = f"{where}it has marks of citations (U+E200 or `【1†`), but not what they cite"
        raise NotText("a citation", problem, is_question=is_question)
    if not text and role != "user":
        return None
    flag = take_flags({"weight": value["weight"]}, where) if role == "assistant" and "weight" in value else None
    return Message(role_of(role, where), text, flag is None or flag[1])


def _chatgpt_text(content: dict[str, object], where: str, *, is_question: bool) -> str:
    parts = items_of(content.get("parts", []), f"{where}`parts`")
    for part in parts:
        if isinstance(part, dict) and "content_type" in part:
            raise NotText(_FILE, f"{where}a part is `{part['content_type']}`, not text", is_question=is_question)
        if not isinstance(part, str):
            raise BadConversation(f"{where}a part is {json_type(part)}, not text")
    return "\n\n".join(str(part) for part in parts if part)


def _claude(row: Mapping[object, object], ignored: set[str]) -> Iterator[_Turn]:
    items = items_of(row["chat_messages"], "`chat_messages`")
    values = [object_of(item, f"message {number}") for number, item in enumerate(items, start=1)]
    if any("parent_message_uuid" in value for value in values):
        by_id = {str(value.get("uuid")): value for value in values}
        parents = {key: str(value.get("parent_message_uuid", _NO_PARENT)) for key, value in by_id.items()}
        known = {key: None if parent.startswith(_NO_PARENT) else parent for key, parent in parents.items()}
        last = row.get("current_leaf_message_uuid") or values[-1].get("uuid")
        values = [by_id[key] for key in path_to(known, str(last))]
    for number, value in enumerate(values, start=1):
        if (message := _claude_message(value, number, ignored)).content:
            yield message, "\n\n", f"message {number}"


def _claude_message(value: dict[str, object], number: int, ignored: set[str]) -> Message:
    where = f"message {number} ({value.get('sender')}): "
    role = role_of(value.get("sender"), where)
    is_question = role == "user"
    if files := next((key for key in _FILE_KEYS if key in value), None):
        raise NotText(_FILE, f"{where}it has `{files}`, on which the answer may depend", is_question=is_question)
    ignored.update(value.keys() - _READ_KEYS_OF_CLAUDE)
    texts = []
    for item in items_of(value.get("content", []), f"{where}`content`"):
        block = object_of(item, f"{where}a block of `content`")
        kind = str(block.get("type"))
        ignored.update(block.keys() - {"type", "text", "thinking"})
        if kind in _IGNORED_BLOCKS:
            ignored.add(kind)
        elif kind == "text":
            texts.append(text_of(block.get("text", ""), "text", where))
        else:
            problem = f"{where}its content has a block `{kind}`, which is not text"
            raise NotText(_FILE if is_question else _TOOL, problem, is_question=is_question)
    text = "\n\n".join(filter(None, texts)) if "content" in value else text_of(value.get("text", ""), "text", where)
    if _LOST_BLOCK in text:
        raise NotText(_TOOL, f'{where}it has "{_LOST_BLOCK}" in place of a tool', is_question=is_question)
    return Message(role, text)
