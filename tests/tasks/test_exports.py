"""Conversations that ChatGPT and Claude export: what is read, ignored and refused."""

from __future__ import annotations

import json

import pytest

from nanochat.cli.run import main
from nanochat.data.ingest.convert import convert
from nanochat.data.sources import SourceSpec
from nanochat.tasks.chat_forms.chat_rows import parse_row
from nanochat.tasks.chat_forms.keys import BadConversation, UntrainedRow
from nanochat.tasks.conversations import read_conversations

RECIPE = """\
nanochat: 1
name: tiny
sources:
  chats: {path: conversations.json}
sft:
  data: {chat: {task: conversations, source: chats}}
  horizon: {steps: 4}
  tokens_per_step: 512
  sequence_len: 256
  init_from: model
tracking: {kind: none}
"""


def said(role, *parts, kind="text", name=None, metadata=None, **keys):
    """Return a message of ChatGPT with the keys that its exports have."""
    author = {"role": role, "name": name, "metadata": {}}
    content = {"content_type": kind, "parts": list(parts)}
    message = {"author": author, "content": content, "weight": 1.0, "recipient": "all", "metadata": metadata or {}}
    return (
        message | {"create_time": 1.5, "update_time": None, "end_turn": True, "status": "finished_successfully"} | keys
    )


def tree(*messages, **keys):
    """Return a row of ChatGPT's export whose messages, from "1" on, follow each other below an empty root."""
    ids = [str(number) for number in range(len(messages) + 1)]
    mapping = {
        key: {"id": key, "message": message, "parent": before, "children": after}
        for key, message, before, after in zip(
            ids, (None, *messages), (None, *ids), (*([key] for key in ids[1:]), []), strict=False
        )
    }
    row = {"title": "a title", "create_time": 1.5, "mapping": mapping, "current_node": ids[-1], "safe_urls": ["https:"]}
    return row | {"conversation_origin": None, "memory_scope": "global_enabled"} | keys


def claude(*messages, **keys):
    """Return a row of Claude's export."""
    row = {"uuid": "u", "name": "a title", "summary": "a long summary " * 9, "account": {"uuid": "me"}}
    return row | {"chat_messages": list(messages)} | keys


def turn(sender, text, *blocks, **keys):
    """Return a message of Claude, whose `text` also holds what stands in its blocks."""
    content = [{"type": "text", "text": text, "citations": []}] if not blocks else list(blocks)
    return {"uuid": "m", "text": text, "content": content, "sender": sender, "attachments": [], "files": []} | keys


def turns(row, ignored=None):
    """Return the role, the text and whether it is trained on, of each message."""
    messages = parse_row(row, set() if ignored is None else ignored).messages
    return [(message.role, message.content, message.is_trained) for message in messages]


HIDDEN = {"is_visually_hidden_from_conversation": True}
ASK, ANSWER = said("user", "q"), said("assistant", "a")
PLAIN = [("user", "q", True), ("assistant", "a", True)]
PICTURE = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://1"}
CODE = said("assistant", recipient="python") | {"content": {"content_type": "code", "text": "1+1"}}
OUTPUT = said("tool", name="python") | {"content": {"content_type": "execution_output", "text": "2"}}


def test_chatgpt_conversation_is_the_path_to_the_current_node():
    """An answer that was generated again, and a question that was edited, are not read."""
    row = tree(said("system", ""), ASK, said("assistant", "old"), said("user", "r"), said("assistant", "b"))
    again = said("assistant", "new")
    row["mapping"]["2"]["children"] = ["3", "x"]
    row["mapping"]["x"] = {"id": "x", "message": again, "parent": "2", "children": []}
    assert turns(row) == [
        ("user", "q", True),
        ("assistant", "old", True),
        ("user", "r", True),
        ("assistant", "b", True),
    ]
    assert turns(row | {"current_node": "x"}) == [("user", "q", True), ("assistant", "new", True)]
    del row["current_node"]
    assert turns(row) == [("user", "q", True), ("assistant", "new", True)]


def test_chatgpt_messages_that_say_nothing_are_ignored_by_name():
    ignored = set()
    row = tree(
        said("system", "", metadata=HIDDEN),
        said("user", metadata=HIDDEN) | {"content": {"content_type": "user_editable_context", "user_profile": "x"}},
        said("system", "Answer in French."),
        ASK,
        said("assistant", ""),
        said("assistant") | {"content": {"content_type": "thoughts", "thoughts": [{"summary": "x"}]}},
        said("assistant", "think", channel="analysis"),
        said("system", "not shown", metadata=HIDDEN),
        said("assistant", "remember", recipient="bio"),
        said("tool", "Model set context updated.", name="bio"),
        said("tool", "", name="search"),
        said("assistant", kind="reasoning_recap"),
        ANSWER,
    )
    assert turns(row, ignored) == [("system", "Answer in French.", True), *PLAIN]
    assert {"thoughts", "reasoning_recap", "user_editable_context", "analysis", "bio", "search"} <= ignored
    assert {"is_visually_hidden_from_conversation", "title", "memory_scope", "safe_urls", "status"} <= ignored
    assert not {"mapping", "current_node", "conversation_origin"} & ignored


def test_chatgpt_messages_of_one_answer_are_joined():
    """An empty line separates them, but not after an answer that was cut off because it was too long."""
    cut = {"finish_details": {"type": "max_tokens"}}
    thoughts = said("assistant", kind="thoughts")
    row = tree(ASK, said("assistant", "I look."), thoughts, said("assistant", "one, ", metadata=cut), ANSWER)
    assert turns(row) == [("user", "q", True), ("assistant", "I look.\n\none, a", True)]


def test_chatgpt_weight_0_keeps_an_answer_as_context():
    unused = said("assistant", "a", weight=0.0)
    expected = [("user", "q", True), ("assistant", "a", False), *PLAIN]
    assert turns(tree(ASK, unused, said("user", "q", weight=0), ANSWER)) == expected
    with pytest.raises(BadConversation, match="message `3` continues an answer, so both must be trained on"):
        parse_row(tree(ASK, unused, ANSWER), set())
    with pytest.raises(UntrainedRow):
        parse_row(tree(ASK, unused), set())


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (tree(said("user", PICTURE, "what is it?", kind="multimodal_text"), ANSWER), r"`1` \(user\): .*`image_asset_p"),
        (tree(said("user", "q", metadata={"attachments": [{"name": "a.pdf"}]}), ANSWER), r"attached files"),
        (tree(ASK, CODE, OUTPUT, ANSWER), r"message `2` \(assistant\): it is to or from the tool `python`"),
        (tree(ASK, OUTPUT, ANSWER), r"message `2` \(tool\): it is to or from the tool `python`"),
        (tree(ASK, said("tool", "page", name="web", metadata=HIDDEN), ANSWER), r"the tool `web`"),
        (tree(ASK, said("assistant", "1", kind="code"), ANSWER), r"its content is `code`, not text"),
        (tree(ASK, said("assistant", "1", kind="tether_quote")), r"its content is `tether_quote`"),
        (tree(ASK, said("assistant", "so \ue200cite\ue202turn0search0\ue201")), "marks of citations"),
        (tree(ASK, said("assistant", "so【1†source】")), "marks of citations"),
        (tree(ASK, ANSWER, said("user", "secret", metadata=HIDDEN), ANSWER), "`3` .*hidden"),
        (tree(ASK, said("assistant", {"text": "a"})), r"a part is `None`, not text"),
        (tree(ASK, said("assistant", 3)), r"a part is a number, not text"),
        (tree(ASK, said("judge", "a")), "role 'judge' is not supported"),
        (tree(ASK, said("assistant", "a", weight=0.5)), "`weight` must be 0 or 1"),
        (tree(ASK, ANSWER, ASK), "the last message must be the assistant's"),
        (tree(ASK, ASK, ANSWER), "message 2 is from `user`; expected `assistant`"),
        (tree(), "at least a question and an answer"),
        (tree(ASK, "a"), "the message of `2` must be an object, found text"),
        (tree(ASK, said("assistant", "a", content=["a"])), "`content` must be an object, found a list"),
        (tree(ASK, ANSWER, current_node="7"), "message `7` is missing"),
        (tree(mapping={"1": {"message": ASK, "parent": "0"}}, current_node="1"), "message `0` is missing"),
        (tree(mapping={"1": {"parent": "2"}, "2": {"parent": "1"}}, current_node="1"), "`1` comes before itself"),
        (tree(mapping={"1": {"parent": "1"}}, current_node=None), "neither a `current_node` nor a message without"),
        (tree(mapping={"1": {"children": ["1"]}}, current_node=None), "`1` comes before itself"),
        (tree(mapping={"1": {"children": ["2"]}}, current_node=None), "`2` is missing"),
        (tree(mapping={"1": {"children": 2}}, current_node=None), "`children` of `1` must be a list, found a number"),
        (tree(mapping={"1": 5}), "`1` of `mapping` must be an object"),
        (tree(mapping="text"), "`mapping` must be an object, found text"),
    ],
)
def test_chatgpt_conversation_is_refused_with_what_was_found(row, problem):
    with pytest.raises(BadConversation, match=problem):
        parse_row(row, set())


def test_claude_conversation_is_the_text_of_its_blocks():
    """`text` also holds thoughts; it is read only where there are no blocks. Empty messages are skipped."""
    ignored = set()
    thinking = {"type": "thinking", "thinking": "x", "summaries": []}
    answer = turn("assistant", "x one two", thinking, *({"type": "text", "text": text} for text in ("one", "two")))
    row = claude(
        turn("human", "q", created_at="2024"), answer, turn("human", ""), turn("human", "r", content=[]),
        turn("assistant", "b", content=None), turn("assistant", "c", {"type": "thinking", "thinking": "c"}),
    )  # fmt: skip
    expected = [("user", "q", True), ("assistant", "one\n\ntwo", True), ("user", "r", True), ("assistant", "b", True)]
    assert turns(row, ignored) == expected
    assert {"uuid", "name", "summary", "account", "thinking", "created_at"} <= ignored and "sender" not in ignored


def test_claude_conversation_is_the_branch_of_its_last_message():
    """The parents of newer exports say which messages were edited or generated again."""
    root = "00000000-0000-4000-8000-000000000000"
    row = claude(
        *(
            turn(sender, text, uuid=text, parent_message_uuid=parent)
            for sender, text, parent in [
                ("human", "q", root), ("assistant", "old", "q"), ("assistant", "a", "q"), ("human", "typo", "a"),
                ("human", "r", "a"), ("assistant", "b", "r"),
            ]
        )
    )  # fmt: skip
    assert turns(row) == [*PLAIN, ("user", "r", True), ("assistant", "b", True)]
    assert turns(row | {"current_leaf_message_uuid": "old"}) == [PLAIN[0], ("assistant", "old", True)]
    row["chat_messages"][2]["parent_message_uuid"] = "gone"
    with pytest.raises(BadConversation, match="message `gone` is missing"):
        parse_row(row, set())


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([turn("human", "q", attachments=[{"extracted_content": "x"}])], r"message 1 \(human\): it has `attachments`"),
        ([turn("human", "q", files=[{"file_name": "a.png"}])], "it has `files`"),
        ([turn("human", "q"), turn("assistant", "a", {"type": "tool_use", "name": "web"})], "2 .* a block `tool_use`"),
        ([turn("human", "q"), turn("assistant", "a", {"type": "tool_result"})], "a block `tool_result`"),
        (
            [turn("human", "q"), turn("assistant", "This block is not supported on your current device yet.")],
            "in place of a tool",
        ),
        ([turn("robot", "q")], "role 'robot' is not supported"),
        ([turn("human", "q"), turn("assistant", 5, content=[])], "`text` must be text, found a number"),
        ([turn("human", "q"), turn("assistant", "a"), turn("assistant", "b")], "message 3 is from `assistant`"),
        ([turn("human", "q"), turn("assistant", "a"), turn("human", "r")], "the last message must be"),
        ([], "at least a question and an answer"),
        ([3], "message 1 must be an object"),
    ],
)
def test_claude_conversation_is_refused_with_what_was_found(messages, problem):
    with pytest.raises(BadConversation, match=problem):
        parse_row(claude(*messages), set())


def test_rows_with_a_key_of_an_export_keep_their_own_form():
    """A table that holds rows of several forms has the keys of all of them, without values."""
    row = {"question": "q", "answer": "a", "mapping": None, "current_node": None, "chat_messages": None}
    assert turns(row) == PLAIN
    assert turns(tree(ASK, ANSWER, chat_messages=None)) == PLAIN
    with pytest.raises(BadConversation, match="expected `messages`, or question/answer"):
        parse_row({"mapping": "a key that maps something"}, set())


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


ROWS = {
    "ChatGPT": [tree(ASK, ANSWER), tree(said("user", PICTURE, kind="multimodal_text"), ANSWER), tree(ASK, ANSWER)],
    "Claude": [
        claude(turn("human", "q"), turn("assistant", "a")),
        claude(turn("human", "q", files=[{"file_name": "a.png"}]), turn("assistant", "a")),
        claude(turn("human", "q"), turn("assistant", "a", {"type": "text", "text": "a"})),
    ],
}


@pytest.mark.parametrize("application", ROWS)
def test_exported_file_is_checked_shown_and_planned(recipe, capsys, application):
    """Of three conversations two are read, and the other one is named with its place."""
    path = recipe.parent / "conversations.json"
    path.write_text(json.dumps(ROWS[application]))
    convert(path, base=recipe.parent / "base")
    assert main(["check", str(recipe)]) == 0
    assert main(["data", str(recipe)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("<|user_start|>q<|user_end|><|assistant_start|>{+a<|assistant_end|>+}") == 2
    assert f"{path}:1 element 2: message" in shown and "2 conversations" in shown
    source = SourceSpec(name="chats", path=(str(path),))
    task = read_conversations(source, "train", base=recipe.parent / "base")
    assert (len(task), len(task.refused)) == (2, 1) and f"{path}:1 element 2: message" in task.refused[0]
    assert main(["plan", str(recipe)]) == 3  # the model to start from is missing
    assert f"chats: an export of {application}\n" in capsys.readouterr().out
