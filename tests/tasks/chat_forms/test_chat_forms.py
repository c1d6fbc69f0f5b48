"""Tests that each key of a chat row is honoured, refused with its name, or ignored and named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import StageError
from nanochat.tasks.chat_forms.chat_rows import parse_row
from nanochat.tasks.chat_forms.row_errors import BadConversation, UntrainedRow
from nanochat.tasks.conversations import read_conversations
from nanochat.tokenizer.chat_format import Conversation, Message, render


def turn(role, content, **keys):
    return {"role": role, "content": content, **keys}


CHAT = [turn("user", "q"), turn("assistant", "a")]
TWO = [*CHAT, turn("user", "r"), turn("assistant", "b")]
PAIR = {"question": "q", "answer": "a"}
DEVELOPER = turn("developer", "s")
CALL = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}

REFUSED = {
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "functions": [{"name": "look"}],
    "tool_calls": [CALL],
    "function_call": {"name": "look", "arguments": "{}"},
    "tool_choice": "auto",
    "history": [["x", "y"]],
    "documents": ["a text"],
    "context": "a text",
    "input": "a text",
    "instruction": "answer in French",
    "images": ["a.png"],
    "rejected": "never",
    "reasoning": "because",
    "reasoningContent": "because",
    "is_correct": False,
    "mask": True,
    "split": "other",
    "article": "a text",
    "sysMsg": "a text",
    "preprompt": "a text",
    "options": "a text",
    "remark_by_us": 9 * "one word ",
    "notes_by_turn": ["x"],
}
IGNORED = {
    "id": "1",
    "prompt_id": "x",
    "source": "web",
    "score": 0.5,
    "metadata": {"a": 1},
    "tags": ["x"],
    "note": "x",
    "created_at": 1,
    "system_fingerprint": "fp",
    "lang": "en",
    "url": 9 * "https://a.b/%20 ",
    "remark": "a few words",
}
FALSE = [0, 0.0, False, "0", "false", "False", "no"]


def outcome(row, column="text"):
    """Return the conversation as (role, text, is_trained), and the keys that were ignored."""
    ignored: set[str] = set()
    conversation = parse_row(row, ignored, column=column)
    return [(m.role, m.text(), m.is_trained) for m in conversation.messages], ignored


@pytest.mark.parametrize("key", ["weight", "train", "training", "trainable", "label", "loss"])
@pytest.mark.parametrize("value", FALSE)
def test_false_flag_masks_a_message_and_leaves_a_row_out(key, value):
    first = [turn("user", "q"), turn("assistant", "a", **{key: value}), *TWO[2:]]
    masked, _ = outcome({"messages": first})
    assert [is_trained for _, _, is_trained in masked] == [True, False, True, True]
    for row in ({"messages": TWO, key: value}, {**PAIR, key: value}, {"messages": first[:2]}):
        with pytest.raises(UntrainedRow):
            parse_row(row, set())


@pytest.mark.parametrize(
    "flags",
    [
        *({key: value} for key in ("invalid", "do_not_use", "toxic", "spam") for value in (True, 1, "yes")),
        {"usable": False},
        {"split": "test"},
        {"subset": "valid"},
        {"fold": "Dev"},
    ],
)
def test_row_that_is_marked_as_unusable_or_held_out_is_left_out(flags):
    for row in ({"messages": TWO, **flags}, {**PAIR, **flags}):
        with pytest.raises(UntrainedRow):
            parse_row(row, set())


@pytest.mark.parametrize("flags", [{"toxic": False}, {"usable": True}, {"split": "train"}])
def test_row_that_is_marked_as_usable_is_trained_on(flags):
    assert outcome({"messages": CHAT, **flags}) == outcome(CHAT)
    assert "split" in flags or outcome([{**message, **flags} for message in CHAT]) == outcome(CHAT)


def test_masked_message_is_rendered_as_context(tokenizer):
    answer = Message("assistant", "a", is_trained=False)
    rest = (Message("user", "r"), Message("assistant", "b"))
    rendered = render(tokenizer, Conversation((Message("user", "q"), answer, *rest)))
    whole = render(tokenizer, Conversation((Message("user", "q"), Message("assistant", "a"), *rest)))
    assert rendered.ids == whole.ids
    assert rendered.mask == [0] * 11 + [1, 1]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": CHAT, "system": "s"}, [("system", "s"), ("user", "q"), ("assistant", "a")]),
        ({**PAIR, "system_prompt": "s"}, [("system", "s"), ("user", "q"), ("assistant", "a")]),
        ({"messages": [DEVELOPER, *CHAT], "system": "s"}, [("system", "s"), ("user", "q"), ("assistant", "a")]),
        ({**PAIR, "context": "c"}, [("user", "c\n\nq"), ("assistant", "a")]),
        ({**PAIR, "input": "i"}, [("user", "q\n\ni"), ("assistant", "a")]),
        ({"prompt": "q", "completion": "a", "context": "c"}, [("user", "c\n\nq"), ("assistant", "a")]),
        ({"instruction": "q", "input": "i", "output": "a"}, [("user", "q\n\ni"), ("assistant", "a")]),
    ],
)  # fmt: skip
def test_system_context_and_input_become_part_of_the_conversation(row, expected):
    assert [(role, text) for role, text, _ in outcome(row)[0]] == expected


@pytest.mark.parametrize(
    "row",
    [
        {"question": "r", "answer": "b", "history": [["q", "a"]]},
        {"question": "r", "answer": "b", "history": json.dumps([["q", "a"]])},
        {"prompt": "r", "completion": "b", "history": CHAT},
        {"prompt": TWO[:3], "completion": TWO[3:]},
    ],
)
def test_history_and_prompt_messages_are_context_that_is_not_trained_on(row):
    assert outcome(row)[0] == [
        ("user", "q", True),
        ("assistant", "a", False),
        ("user", "r", True),
        ("assistant", "b", True),
    ]


@pytest.mark.parametrize("key", REFUSED)
def test_key_with_meaning_refuses_the_row_and_is_named(key):
    with pytest.raises(BadConversation, match=f"^the key `{key}` is not supported"):
        parse_row({"messages": CHAT, key: REFUSED[key]}, set())
    with pytest.raises(BadConversation, match=rf"^message 2 \(assistant\): the key `{key}`"):
        parse_row([CHAT[0], {**CHAT[1], key: REFUSED[key]}], set())
    assert outcome({"messages": [CHAT[0], {**CHAT[1], key: None}], key: []}) == outcome(CHAT)


@pytest.mark.parametrize("key", IGNORED)
def test_key_that_describes_a_row_is_ignored_and_named(key):
    messages, ignored = outcome({"messages": [CHAT[0], {**CHAT[1], key: IGNORED[key]}], key: IGNORED[key]})
    assert messages == outcome(CHAT)[0]
    assert ignored == {key}


@pytest.mark.parametrize(
    ("row", "ignored"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "x"}, {"rejected"}),
        ({"question": "q", "chosen": "a", "score_chosen": 2.0, "chosen-model": "m"}, {"score_chosen", "chosen-model"}),
        ({"prompt": "q", "chosen": CHAT, "rejected": [CHAT[0], turn("assistant", "x")]}, {"rejected", "prompt"}),
        ({"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [turn("assistant", "x")]}, {"rejected"}),
        ({"chosen": CHAT, "rejected": CHAT}, {"rejected"}),
        ({"chosen": json.dumps(CHAT), "rejected": "x"}, {"rejected"}),
        ({"prompt": "q", "messages": CHAT, "chosen": CHAT, "rejected": []}, {"prompt", "messages"}),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}}, set()),
        ({"messages": CHAT, "chosen": CHAT}, {"messages"}),
        ({"prompt": json.dumps(CHAT[:1]), "chosen": "a"}, set()),
    ],
)  # fmt: skip
def test_chosen_side_of_a_preference_pair_is_read(row, ignored):
    assert outcome(row) == (outcome(CHAT)[0], ignored)


def test_chosen_text_in_brackets_is_not_taken_for_messages():
    assert outcome({"prompt": "q", "chosen": "[1, 2]"})[0] == [("user", "q", True), ("assistant", "[1, 2]", True)]
    system = [turn("system", "s"), *CHAT]
    assert outcome({"prompt": "q", "chosen": system}) == (outcome(system)[0], {"prompt"})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"chosen": "a", "rejected": "x"}, "`chosen` is an answer without its `prompt`"),
        ({"prompt": "other", "chosen": CHAT}, "`chosen` does not begin with the messages of `prompt`"),
        ({"prompt": "q", "chosen": "a", "answer": "b"}, "the key `answer`"),
        ({"prompt": "q", "rejected": "x"}, "expected `messages`"),
        ({"prompt": "q", "chosen": 3}, "`chosen` must be text, found a number"),
        ({"prompt": "q", "chosen": ["a"]}, "message 1: must be an object"),
    ],
)
def test_preference_pair_without_a_clear_conversation_is_refused(row, problem):
    with pytest.raises(BadConversation, match=problem):
        parse_row(row, set())


def test_row_of_an_unknown_form_names_its_keys_and_both_remedies():
    with pytest.raises(BadConversation, match="keys: ask, reply;") as caught:
        parse_row({"ask": "2 + 2?", "reply": "4"}, set())
    assert "set the source's `column` to it" in str(caught.value)
    assert 'set `map: {user: "{KEY}", assistant: "{OTHER_KEY}"}`' in str(caught.value)


def call(name, arguments):
    return {"tool_calls": [{"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}]}


@pytest.mark.parametrize(
    "turns",
    [
        [turn("assistant", [{"type": "python", "text": "1+1"}]), turn("tool", "2"), turn("assistant", "It is 2.")],
        [turn("assistant", None, **call("python", '{"code": "1+1"}')), turn("tool", "2", tool_call_id="c"),
         turn("assistant", "It is 2.")],
        [turn("assistant", "", function_call={"name": "python", "arguments": "1+1"}),
         turn("function", "2", name="python"), turn("assistant", "It is 2.")],
        [{"from": "gpt", "value": "", **call("code_interpreter", {"code": "1+1"})}, {"from": "tool", "value": "2"},
         {"from": "gpt", "value": "It is 2."}],
    ],
)  # fmt: skip
def test_python_calls_and_their_outputs_are_rendered_with_markers(turns, tokenizer):
    """The expected ids are written out by hand; the output of the tool is not trained on."""
    question = {"from": "human", "value": "q"} if "from" in turns[0] else CHAT[0]
    rendered = render(tokenizer, parse_row([question, *turns], set()))
    code, output = [261, *b"1+1", 262], [263, *b"2", 264]
    assert rendered.ids == [256, 257, *b"q", 258, 259, *code, *output, *b"It is 2.", 260]
    assert rendered.mask == [0] * 5 + [1] * 5 + [0] * 3 + [1] * 9


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([turn("tool", "2"), CHAT[1]], "message 2: role 'tool' is not supported here; it must follow the Python code"),
        ([CHAT[1], turn("function", "2")], "message 3: role 'function'"),
        ([turn("assistant", "", **call("look", "{}"))], "the key `tool_calls`"),
        ([turn("assistant", "", **call("python", '{"code": "1", "timeout": 3}'))], "the key `tool_calls`"),
        ([{"role": "assistant", **call("python", "1+1")}, turn("tool", "2", name="look")], r"\(tool\): the key `name`"),
        ([{"role": "assistant", **call("python", "1+1")}, turn("tool", "2"), turn("assistant", "a", weight=0)],
         "message 4: it continues an answer, so both must be trained on or neither"),
    ],
)  # fmt: skip
def test_other_tool_calls_are_refused(turns, problem):
    with pytest.raises(BadConversation, match=problem):
        parse_row([CHAT[0], *turns], set())


def test_column_names_the_key_that_holds_the_conversation():
    assert outcome({"chat": CHAT, "id": 1}, column="chat") == (outcome(CHAT)[0], {"id"})
    assert outcome({"chat": json.dumps({"messages": CHAT})}, column="chat") == outcome(CHAT)
    assert outcome({"text": CHAT}) == outcome(CHAT)
    with pytest.raises(BadConversation, match=r"no key `chat` .*the keys are: messages"):
        parse_row({"messages": CHAT}, set(), column="chat")


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_row_with_random_keys_is_trained_with_its_full_meaning_or_refused(data):
    """The expected conversation is computed here from the keys that were drawn."""
    is_pair = data.draw(st.booleans())
    row = dict(PAIR) if is_pair else {"messages": [dict(message) for message in TWO]}
    expected = [["user", "q", True], ["assistant", "a", True]] + (
        [] if is_pair else [["user", "r", True], ["assistant", "b", True]]
    )
    is_refused = False
    for key in data.draw(st.lists(st.sampled_from([*REFUSED, *IGNORED]), max_size=3, unique=True)):
        row[key] = REFUSED.get(key, IGNORED.get(key))
        if is_pair and key == "context":
            expected[-2][1] = f"{row[key]}\n\n{expected[-2][1]}"
        elif is_pair and key == "input":
            expected[-2][1] += f"\n\n{row[key]}"
        elif is_pair and key == "history":
            expected = [["user", "x", True], ["assistant", "y", False], *expected]
        else:
            is_refused |= key in REFUSED
    if data.draw(st.booleans()):
        row["system"] = "s"
        expected = [["system", "s", True], *expected]
    flag = data.draw(st.sampled_from([None, *FALSE, 1, True, "true", "maybe", 0.5]))
    if flag is not None:
        (row if is_pair or data.draw(st.booleans()) else row["messages"][1])["weight"] = flag
        is_refused |= flag in ("maybe", 0.5) or ("weight" in row and flag in FALSE)
        if "weight" not in row and flag in FALSE:
            expected[-3][2] = False
    if is_refused:
        with pytest.raises(BadConversation):
            parse_row(row, set())
    else:
        messages, ignored = outcome(row)
        assert messages == [tuple(message) for message in expected]
        assert ignored == row.keys() & IGNORED.keys()


def test_rows_that_ask_not_to_be_trained_on_are_counted_but_are_no_fault(tmp_path):
    """Preference data is often half `label: false`. A source without any other row has nothing to train on."""
    path = tmp_path / "chat.jsonl"
    source = SourceSpec(name="mine", path=(str(path),))
    rows = [{**PAIR, "label": i % 2 == 0, "id": i} for i in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = read_conversations(source, "train", base=tmp_path)
    assert (len(task), len(task.refused), task.ignored) == (50, 50, ["id"])
    path.write_text("".join(json.dumps({**row, "label": False}) + "\n" for row in rows))
    with pytest.raises(StageError, match="100 of 100 conversations cannot be used"):
        read_conversations(source, "train", base=tmp_path)
