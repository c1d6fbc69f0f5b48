"""Chat data is read in several forms. Bad rows are counted, and too many of them are an error."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError, StageError
from nanochat.tasks.chat_forms.chat_rows import parse_row
from nanochat.tasks.conversations import BadConversation, read_conversations
from nanochat.tasks.task import gold_text
from nanochat.tokenizer.chat_format import Conversation, Message, Part, render

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
EXPECTED = Conversation((Message("user", "hi"), Message("assistant", "yo")))


@pytest.mark.parametrize(
    "value",
    [
        {"messages": [USER, ASSISTANT]},
        {"messages": [USER, ASSISTANT], "ideal": "another"},
        {"messages": [USER], "ideal": "yo"},
        {"messages": [USER], "ideal": ["yo", "hey"]},
        {"question": "hi", "answer": "yo"},
        {"prompt": "hi", "completion": "yo", "source": "x"},
        {"instruction": "hi", "input": "", "output": "yo"},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
        {"messages": json.dumps([USER, ASSISTANT])},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, ASSISTANT]},
        {"messages": [{**USER, "name": None}, {**ASSISTANT, "weight": 1, "tool_calls": []}], "tools": None},
        {"messages": [USER, ASSISTANT], "prompt": "hi", "label": True},
        [USER, ASSISTANT],
    ],
)
def test_conversation_is_parsed_from_each_form(value):
    assert parse_row(value, set()) == EXPECTED


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("text", "found text"),
        (None, "found null"),
        (7, "found a number"),
        ({}, "keys: none"),
        ({"text": "x"}, "keys: text"),
        ([], "at least a question and an answer"),
        ([USER], "at least a question and an answer"),
        ([USER, USER], "message 2 is from `user`; expected `assistant`"),
        ([ASSISTANT, USER], "message 1 is from `assistant`; expected `user`"),
        ([USER, ASSISTANT, USER], "last message must be the assistant's"),
        ([USER, {"role": "assistant", "content": ""}], "empty answer"),
        ([USER, {"role": "tool", "content": "x"}], "role 'tool'"),
        ([USER, {"content": "x"}], "must have `role` and `content`"),
        ([{"role": "user", "content": 3}, ASSISTANT], r"message 1 \(user\): `content` must be text, found a number"),
        (
            [USER, {"role": "assistant", "content": [{"type": "image", "text": ""}]}],
            r"message 2 \(assistant\): part 1 of `content` must have `type`",
        ),
        ({"messages": None}, "`messages` must be a list of messages, found null"),
        ({"messages": "hi"}, "`messages` is text, and not JSON"),
        ({"messages": []}, "`messages` must be a list of messages, found an empty list"),
        ([{"messages": [USER, ASSISTANT]}] * 12, "JSON array of 12 rows; write one object on each line"),
        (
            [USER, {"role": "assistant", "content": None}],
            r"message 2 \(assistant\): `content` must be text, found null",
        ),
        ([USER, {**ASSISTANT, "weight": 0.5}], r"message 2 \(assistant\): `weight` must be 0 or 1"),
        ([{**USER, "train": True}, ASSISTANT], r"message 1 \(user\): `train` asks to train on it"),
        ([{**USER, "name": "Ann"}, ASSISTANT], r"message 1 \(user\): the key `name`"),
        ({"question": "hi", "answer": None}, "`answer` must be text, found null"),
    ],
)
def test_bad_conversation_is_refused_with_its_problem(value, problem):
    with pytest.raises(BadConversation, match=problem):
        parse_row(value, set())


def _write(path, lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return SourceSpec(name="mine", path=(str(path),))


def test_bad_lines_are_left_out_and_listed(tmp_path):
    """Line numbers start at 1 and count blank lines."""
    path = tmp_path / "chat.jsonl"
    source = _write(path, [[USER, ASSISTANT], "", "{broken", [USER, USER], {"prompt": "hi", "completion": "yo"}])
    task = read_conversations(source, "train", base=tmp_path)
    assert [example.conversation for example in task] == [EXPECTED, EXPECTED]
    assert [refused.split(": ")[0] for refused in task.refused] == [f"{path}:3", f"{path}:4"]


def test_problems_of_long_rows_are_shortened_and_an_encoding_is_shown_once(tmp_path):
    bad = [b'{"question": "caf\xe9", "answer": "a"}\n'] * 9
    bad += [b'{"question": "q", "answer": "a", "tool_' + b"x" * 9000 + b'": 1}\n', b"[]\n"]
    (tmp_path / "a.jsonl").write_bytes(b"".join(bad))
    with pytest.raises(StageError) as caught:
        read_conversations(SourceSpec(name="mine", path=(str(tmp_path / "a.jsonl"),)), "train", base=tmp_path)
    heading, *problems = str(caught.value).split("\n  ")
    assert "11 of 11 conversations cannot be used" in heading
    assert [problem.split(": ")[0].rsplit("/", 1)[1] for problem in problems] == [f"a.jsonl:{i}" for i in (1, 10, 11)]
    assert all(len(problem) <= 501 for problem in problems)


def test_source_with_too_many_bad_lines_is_refused(tmp_path):
    """Ten lines of any number may be bad, or one in a hundred. The message shows the first of them."""
    good, bad = [[USER, ASSISTANT]] * 100, [[USER]] * 11
    read_conversations(_write(tmp_path / "ten.jsonl", good + bad[:10]), "train", base=tmp_path)
    with pytest.raises(StageError, match=r"11 of 111 conversations cannot be used[^$]*eleven\.jsonl:101: "):
        read_conversations(_write(tmp_path / "eleven.jsonl", good + bad), "train", base=tmp_path)
    read_conversations(_write(tmp_path / "many.jsonl", good * 11 + bad), "train", base=tmp_path)


def test_source_without_a_good_line_is_refused(tmp_path):
    with pytest.raises(StageError, match="1 of 1 conversation cannot be used"):
        read_conversations(_write(tmp_path / "a.jsonl", [[USER]]), "train", base=tmp_path)
    with pytest.raises(PreflightError, match="`mine`"):
        read_conversations(SourceSpec(name="mine", path=(str(tmp_path / "none.jsonl"),)), "train", base=tmp_path)


def test_parts_and_system_messages_are_stored_without_loss(tmp_path):
    """Tool calls, white space and letters of any language are preserved."""
    parts = [{"type": "text", "text": "so "}, {"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    messages = [{"role": "system", "content": " é\n"}, USER, {"role": "assistant", "content": parts}]
    one = [USER, {"role": "assistant", "content": [{"type": "text", "text": "yo"}]}]
    task = read_conversations(_write(tmp_path / "a.jsonl", [messages, one]), "train", base=tmp_path)
    answer = (Part("text", "so "), Part("python", "1+1"), Part("python_output", "2"))
    expected = (Message("system", " é\n"), Message("user", "hi"), Message("assistant", answer))
    assert task[0].conversation == Conversation(expected)
    assert gold_text(task[1]) == "yo"


def test_parquet_rows_are_read_from_the_column_messages(tmp_path):
    """Other columns are ignored, and `max_examples` keeps the first rows."""
    table = pa.table({"messages": [[USER, ASSISTANT]] * 3, "source": ["x"] * 3})
    pq.write_table(table, tmp_path / "train-0.parquet")
    source = SourceSpec(name="smol", path=(str(tmp_path),))
    assert [len(read_conversations(source, "train", base=tmp_path, max_examples=n)) for n in (None, 2)] == [3, 2]
    assert read_conversations(source, "train", base=tmp_path)[2].conversation == EXPECTED


def test_parquet_columns_that_chats_do_not_need_are_not_read(tmp_path):
    """A text that is not UTF-8 beside good messages does no harm; in a column that is used, it makes a bad row."""
    bad = pa.array([b"\xe9", b"s"], pa.binary()).view(pa.string())
    late = pa.array([2**60, 0]).cast(pa.timestamp("us"))
    table = pa.table({"messages": [[USER, ASSISTANT]] * 2, "note": bad, "when": late})
    pq.write_table(table, tmp_path / "a.parquet")
    task = read_conversations(SourceSpec(name="mine", path=(str(tmp_path),)), "train", base=tmp_path)
    assert (len(task), task.refused, task.ignored) == (2, [], ["note", "when"])
    remarks = table.set_column(1, "remark", pa.array(["short", 9 * "a long text "]))
    pq.write_table(remarks, tmp_path / "a.parquet")
    task = read_conversations(SourceSpec(name="mine", path=(str(tmp_path),)), "train", base=tmp_path)
    assert (len(task), task.ignored) == (1, ["remark", "when"]) and "the key `remark`" in task.refused[0]
    pq.write_table(table.rename_columns(["messages", "system", "when"]), tmp_path / "a.parquet")
    task = read_conversations(SourceSpec(name="mine", path=(str(tmp_path),)), "train", base=tmp_path)
    assert task[0].conversation == Conversation((Message("system", "s"), *EXPECTED.messages))
    assert task.refused == [f"{tmp_path / 'a.parquet'} row 1: `system` cannot be read: it is not UTF-8 (byte 1)"]


def test_conversation_is_rendered_as_by_hand(tokenizer):
    """Only the assistant's words are trained on."""
    rendered = render(tokenizer, parse_row([USER, ASSISTANT, USER, ASSISTANT], set()))
    turn = [257, 104, 105, 258, 259, 121, 111, 260]
    assert rendered.ids == [256, *turn, *turn]
    assert rendered.mask == [0, *[0, 0, 0, 0, 0, 1, 1, 1] * 2]


def test_grade_accepts_only_the_reference_answer(tmp_path):
    """Surrounding white space is ignored."""
    task = read_conversations(_write(tmp_path / "a.jsonl", [[USER, ASSISTANT]]), "train", base=tmp_path)
    assert task.grade(task[0], "yo <|assistant_end|>")
    assert not task.grade(task[0], "yo!")
    assert not task.grade(task[0], "")
