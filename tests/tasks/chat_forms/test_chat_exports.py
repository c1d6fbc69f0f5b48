"""Conversations that ChatGPT and Claude export: what is read, ignored and refused."""

from __future__ import annotations

import json
import re

import pytest

from nanochat.cli.run import main
from nanochat.data.ingest.convert import convert
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.tasks.chat_forms.chat_rows import parse_row
from nanochat.tasks.chat_forms.row_errors import BadConversation, LeftOutRow, UntrainedRow
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


NOT_TEXT = [
    (
        "a picture or a file",
        said("user", PICTURE, "what?", kind="multimodal_text"),
        r"\(user\): .*`image_asset_pointer`",
    ),
    ("a picture or a file", said("user", "q", metadata={"attachments": [{"name": "a.pdf"}]}), "attached files"),
    ("a tool", CODE, r"\(assistant\): it is to or from the tool `python`"),
    ("a tool", OUTPUT, r"\(tool\): it is to or from the tool `python`"),
    ("a tool", said("tool", "page", name="web", metadata=HIDDEN), "the tool `web`"),
    ("a tool", said("assistant", "1", kind="code"), "its content is `code`, not text"),
    ("a tool", said("assistant", "1", kind="tether_quote"), "its content is `tether_quote`"),
    ("a citation", said("assistant", "so \ue200cite\ue202turn0search0\ue201"), "marks of citations"),
    ("a citation", said("assistant", "so【1†source】"), "marks of citations"),
    ("hidden context", said("user", "secret", metadata=HIDDEN), "hidden"),
]


def cut_turns(row):
    """Return the role and the text of each message that is read, and why the others are not."""
    cut = []
    messages = parse_row(row, set(), cut=cut).messages
    return [(message.role, message.content) for message in messages], [(reason.what, str(reason)) for reason in cut]


@pytest.mark.parametrize(("what", "message", "problem"), NOT_TEXT)
def test_chatgpt_conversation_is_read_up_to_what_is_not_text(what, message, problem):
    """A question belongs to what follows, and so does the beginning of an answer that goes on with a tool."""
    is_question = message["author"]["role"] == "user"
    begun = () if is_question else (said("user", "r"), said("assistant", "I look."))
    expected = [("user", "q"), ("assistant", "a")]
    read, ((kind, reason),) = cut_turns(tree(ASK, ANSWER, *begun, message, said("judge", "what follows is not read")))
    assert (read, kind) == (expected, what)
    assert re.match(f"message `{len(begun) + 3}` .*{problem}", reason)
    with pytest.raises(LeftOutRow, match=f"{problem}.*, and no answer is before it"):
        parse_row(tree(said("system", "be kind"), *(begun or [ASK]), message, ANSWER), set())


def test_exported_conversation_is_cut_after_its_last_answer():
    expected = (
        [("user", "q"), ("assistant", "a")],
        [("a question without an answer", "its last question has no answer")],
    )
    assert cut_turns(tree(ASK, ANSWER, ASK)) == expected
    assert cut_turns(claude(turn("human", "q"), turn("assistant", "a"), turn("human", "r"))) == expected
    for row in (tree(), tree(ASK), claude(), claude(turn("human", "q"))):
        with pytest.raises(LeftOutRow, match="its last question has no answer, and no answer is before it"):
            parse_row(row, set())


def test_messages_of_one_speaker_in_an_export_are_joined():
    expected = [("user", "q\n\nr"), ("assistant", "a\n\nb")]
    assert cut_turns(tree(ASK, said("user", "r"), ANSWER, said("assistant", "b"))) == (expected, [])
    row = claude(turn("human", "q"), turn("human", "r"), turn("assistant", "a"), turn("assistant", "b"))
    assert cut_turns(row) == (expected, [])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (tree(ASK, said("assistant", {"text": "a"})), r"a part is an object, not text"),
        (tree(ASK, said("assistant", 3)), r"a part is a number, not text"),
        (tree(ASK, said("judge", "a")), "role 'judge' is not supported"),
        (tree(ASK, said("assistant", "a", weight=0.5)), "`weight` must be 0 or 1"),
        (tree(ANSWER, ASK, ANSWER), "message 1 is from `assistant`; expected `user`"),
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
    ("what", "message", "problem"),
    [
        ("a picture or a file", turn("human", "r", attachments=[{"extracted_content": "x"}]), "it has `attachments`"),
        ("a picture or a file", turn("human", "r", files=[{"file_name": "a.png"}]), "it has `files`"),
        ("a tool", turn("assistant", "b", {"type": "tool_use", "name": "web"}), "a block `tool_use`"),
        ("a tool", turn("assistant", "b", {"type": "tool_result"}), "a block `tool_result`"),
        ("a tool", turn("assistant", "This block is not supported on your current device yet."), "in place of a tool"),
    ],
)
def test_claude_conversation_is_read_up_to_what_is_not_text(what, message, problem):
    begun = [turn("human", "r")] if message["sender"] == "assistant" else []
    read, ((kind, reason),) = cut_turns(
        claude(turn("human", "q"), turn("assistant", "a"), *begun, message, turn("robot", ""))
    )
    assert (read, kind) == ([("user", "q"), ("assistant", "a")], what)
    assert re.match(f"message {len(begun) + 3} .*{problem}", reason)
    with pytest.raises(LeftOutRow, match=problem):
        parse_row(claude(*begun, message), set())


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([turn("robot", "q")], "role 'robot' is not supported"),
        ([turn("human", "q"), turn("assistant", 5, content=[])], "`text` must be text, found a number"),
        ([turn("assistant", "a"), turn("human", "q"), turn("assistant", "b")], "message 1 is from `assistant`"),
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


TOOL_USE = turn("assistant", "b", {"type": "tool_use"})
ROWS = {
    "ChatGPT": [
        tree(ASK, ANSWER),
        tree(said("user", PICTURE, kind="multimodal_text"), ANSWER),
        tree(ASK, ANSWER, said("user", "r"), CODE, OUTPUT, ANSWER),
        *[tree(ASK, CODE, OUTPUT, ANSWER)] * 20,
    ],
    "Claude": [
        claude(turn("human", "q"), turn("assistant", "a")),
        claude(turn("human", "q", files=[{"file_name": "a.png"}]), turn("assistant", "a")),
        claude(
            turn("human", "q"), turn("assistant", "a"), turn("human", "r"), turn("assistant", "b", {"type": "tool_use"})
        ),
        *[claude(turn("human", "q"), turn("assistant", "a", {"type": "tool_use"}))] * 20,
    ],
}


@pytest.mark.parametrize("application", ROWS)
def test_exported_file_is_checked_shown_and_planned(recipe, capsys, application):
    """Most conversations need a tool; they are counted, and named with their places, and are no fault of the data."""
    path = recipe.parent / "conversations.json"
    path.write_text(json.dumps(ROWS[application]))
    convert(path, base=recipe.parent / "base")
    assert main(["check", str(recipe)]) == 0
    assert main(["data", str(recipe)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("<|user_start|>q<|user_end|><|assistant_start|>{+a<|assistant_end|>+}") == 2
    assert f"{path}:1 element 2: message" in shown and "2 conversations" in shown
    assert "rows that are not used: 21\n" in shown and "conversations that are used only up to a tool: 1\n" in shown
    source = SourceSpec(name="chats", path=(str(path),))
    task = read_conversations(source, "train", base=recipe.parent / "base")
    assert (len(task), len(task.refused), len(task.cut)) == (2, 21, 1)
    assert f"{path}:1 element 2: message" in task.refused[0] and f"{path}:1 element 3: message" in task.cut[0][1]
    cut = "1 conversation used only up to what cannot be trained on as text (1 before a tool): "
    assert task.remarks()[1].startswith(f"{cut}{path}:1 element 3: message")
    assert main(["plan", str(recipe)]) == 3  # the model to start from is missing
    assert f"chats: an export of {application}\n" in capsys.readouterr().out


def test_plan_counts_the_conversations_of_an_export_that_are_not_read_whole(recipe, capsys):
    rows = [json.dumps(row) + "\n" for row in ROWS["ChatGPT"]]
    (recipe.parent / "chats.jsonl").write_text("".join(rows))
    assert main(["plan", str(recipe), "--set", f"sources.chats.path={recipe.parent}/chats.jsonl"]) == 3
    shown = " ".join(capsys.readouterr().out.split())
    assert "21 rows not used: " in shown and "1 conversation used only up to what cannot be trained on" in shown
