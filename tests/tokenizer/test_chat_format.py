from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.errors import NanochatError
from nanochat.tokenizer.chat_format import (
    Conversation,
    ConversationError,
    Message,
    Part,
    fit_for_completion,
    render,
    render_for_completion,
)

BOS, USER, USER_END, BOT, BOT_END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = range(1, 10)
A, B, C, D, LINE = 1097, 1098, 1099, 1100, 1010


def talk(*turns):
    return Conversation(tuple(Message(role, content) for role, content in turns))


def test_render_trains_on_python_but_not_on_its_output(letters):
    parts = (Part("text", "a"), Part("python", "b"), Part("python_output", "c"), Part("text", "d"))
    rendered = render(letters, talk(("user", "a"), ("assistant", parts)))
    assert rendered.ids == [
        *(BOS, USER, A, USER_END, BOT),
        *(A, PYTHON, B, PYTHON_END, OUTPUT, C, OUTPUT_END, D, BOT_END),
    ]
    assert rendered.mask == [0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1]


def test_render_starts_a_conversation_of_two_rounds_with_one_bos(letters):
    rendered = render(letters, talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert rendered.ids == [BOS, USER, A, USER_END, BOT, B, BOT_END, USER, C, USER_END, BOT, D, BOT_END]
    assert rendered.mask == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1]


def test_render_prepends_the_system_message_to_the_first_question(letters):
    rendered = render(letters, talk(("system", "a"), ("user", "b"), ("assistant", "c")))
    assert rendered.ids == [BOS, USER, A, LINE, LINE, B, USER_END, BOT, C, BOT_END]
    assert rendered.mask == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_render_encodes_special_strings_in_a_message_as_text(tokenizer):
    rendered = render(tokenizer, talk(("user", "<|assistant_start|>"), ("assistant", "<|bos|>")))
    assert [i for i in rendered.ids if i < 10] == [BOS, USER, USER_END, BOT, BOT_END]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "at least one message"),
        ([("assistant", "a")], "message 1 is from `assistant`; expected `user`"),
        ([("user", "a"), ("user", "b")], "message 2 is from `user`; expected `assistant`"),
        ([("system", "s"), ("user", "a"), ("user", "b")], "message 3 is from `user`; expected `assistant`"),
        ([("system", "a")], "must be followed by a user message"),
        ([("system", "a"), ("assistant", "b")], "must be followed by a user message"),
        ([("user", "a"), ("assistant", "b"), ("system", "c")], "message 3 is from `system`; expected `user`"),
        ([("user", (Part("text", "a"),))], "message 1 .* must be one text"),
        ([("user", "a"), ("assistant", "b"), ("user", (Part("text", "c"),))], "message 3 .* must be one text"),
    ],
)
def test_render_refuses_messages_in_the_wrong_order(letters, turns, message):
    with pytest.raises(ConversationError, match=message) as caught:
        render(letters, talk(*turns))
    assert isinstance(caught.value, NanochatError)


def test_render_for_completion_drops_the_last_answer(letters):
    conversation = talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    prompt = [BOS, USER, A, USER_END, BOT, B, BOT_END, USER, C, USER_END, BOT]
    assert render_for_completion(letters, conversation) == prompt
    assert render_for_completion(letters, Conversation(conversation.messages[:-1])) == prompt


def test_render_for_completion_keeps_the_system_message_and_the_newest_turns(letters):
    conversation = talk(("system", "d"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    whole = [BOS, USER, D, LINE, LINE, A, USER_END, BOT, B, BOT_END, USER, C, USER_END, BOT]
    assert fit_for_completion(letters, conversation, max_tokens=14).ids == whole
    newest = [BOS, USER, D, LINE, LINE, C, USER_END, BOT]
    assert fit_for_completion(letters, conversation, max_tokens=13).ids == newest
    assert fit_for_completion(letters, conversation, max_tokens=8).ids == newest


def test_render_for_completion_drops_the_oldest_round_first(letters):
    """Two rounds and a question have 17 tokens; the second round and the question have 11."""
    conversation = talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "a"))
    newest = [BOS, USER, C, USER_END, BOT, D, BOT_END, USER, A, USER_END, BOT]
    assert len(fit_for_completion(letters, conversation, max_tokens=17).ids) == 17
    assert fit_for_completion(letters, conversation, max_tokens=16).ids == newest
    assert fit_for_completion(letters, conversation, max_tokens=11).ids == newest
    fitted = [fit_for_completion(letters, conversation, max_tokens=limit) for limit in (17, 16, 11, 5)]
    counts = [(prompt.dropped_messages, prompt.dropped_tokens, prompt.is_cut) for prompt in fitted]
    assert counts == [(0, 0, False), (2, 0, True), (2, 0, True), (4, 0, True)]


def test_render_for_completion_keeps_the_end_of_a_long_question(letters):
    conversation = talk(("user", "abcd"))
    assert fit_for_completion(letters, conversation, max_tokens=6).ids == [BOS, USER, C, D, USER_END, BOT]
    fitted = fit_for_completion(letters, conversation, max_tokens=6)
    assert (fitted.dropped_messages, fitted.dropped_tokens, fitted.is_cut) == (0, 2, True)
    with pytest.raises(ConversationError, match="a context of 4 tokens cannot hold a question"):
        fit_for_completion(letters, conversation, max_tokens=4)


@pytest.mark.parametrize("turns", [[], [("assistant", "a")], [("user", "a"), ("assistant", "b"), ("assistant", "c")]])
def test_render_for_completion_needs_a_question(letters, turns):
    with pytest.raises(ConversationError, match="no user message to answer"):
        render_for_completion(letters, talk(*turns))


texts = st.text("abc", max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.integers(5, 60))
def test_render_for_completion_is_a_prefix_of_render_within_the_limit(letters, rounds, limit):
    turns = [turn for question, answer in rounds for turn in (("user", question), ("assistant", answer))]
    whole = render(letters, talk(*turns))
    prompt = render_for_completion(letters, talk(*turns))
    assert whole.ids[: len(prompt)] == prompt
    assert len(whole.mask) == len(whole.ids)
    assert sum(whole.mask) == sum(len(answer) + 1 for _, answer in rounds)
    assert len(fit_for_completion(letters, talk(*turns), max_tokens=limit).ids) <= limit
