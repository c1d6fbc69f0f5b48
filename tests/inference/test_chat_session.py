"""A chat session remembers the turns that fit the context, and streams whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

import numpy as np
import pytest

from nanochat.inference.chat_session import ChatSession, ChatSettings, parse_answer
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import Sampling
from nanochat.tokenizer.chat_format import Conversation, Message, Part, render


class FakeEngine:
    """An engine that answers with prepared tokens and records the requests."""

    def __init__(self, tokenizer, *answers: list[int], sequence_len: int = 200) -> None:
        self.tokenizer = tokenizer
        self.answers = list(answers)
        self.prompts: list[str] = []
        self.requests: list[dict[str, object]] = []
        self.model = type("Model", (), {"config": type("Config", (), {"sequence_len": sequence_len})})

    def generate(self, prompt_ids, **settings) -> Iterator[int]:
        self.prompts.append(self.tokenizer.decode(prompt_ids))
        self.requests.append(settings)
        yield from self.answers.pop(0)


@pytest.fixture
def fake(tokenizer):
    def build(*answers: str, sequence_len: int = 200) -> FakeEngine:
        return FakeEngine(tokenizer, *[tokenizer.encode(text) for text in answers], sequence_len=sequence_len)

    return build


def test_session_repeats_the_history_in_every_prompt(fake):
    engine = fake("two", "four")
    session = ChatSession(engine)
    assert "".join(session.reply("one?")) == "two"
    assert "".join(session.reply("three?")) == "four"
    assert engine.prompts[1] == (
        "<|bos|><|user_start|>one?<|user_end|><|assistant_start|>two<|assistant_end|>"
        "<|user_start|>three?<|user_end|><|assistant_start|>"
    )


def test_session_replaces_the_system_prompt(fake):
    engine = fake("a", "b", "c")
    session = ChatSession(engine, system="Be brief.")
    list(session.reply("1"))
    session.system = "Be kind."
    list(session.reply("2"))
    session.system = None
    list(session.reply("3"))
    assert "<|user_start|>Be brief.\n\n1<|user_end|>" in engine.prompts[0]
    assert "Be brief." not in engine.prompts[1]
    assert "<|user_start|>Be kind.\n\n1<|user_end|>" in engine.prompts[1]
    assert "Be" not in engine.prompts[2]


def test_session_drops_the_oldest_turns_if_the_context_is_full(fake, tokenizer):
    """The prompt leaves room for the answer and keeps the system prompt."""
    engine = fake("x" * 10, "y" * 10, "z" * 10, sequence_len=80)
    session = ChatSession(engine, system="S", settings=ChatSettings(max_tokens=16))
    for question in ("first question", "second question", "third question"):
        list(session.reply(question))
    assert "first" in engine.prompts[1]
    assert "first" not in engine.prompts[2]
    assert "<|user_start|>S\n\nsecond question<|user_end|>" in engine.prompts[2]
    assert len(session.prompt("fourth").ids) <= 80 - 16


def test_session_says_what_did_not_fit(fake):
    """Old messages are left out first, then the start of the question; and an answer may reach a limit."""
    engine = fake("x" * 10, "y" * 10, "z" * 10, "a" * 20, sequence_len=60)
    session = ChatSession(engine, settings=ChatSettings(max_tokens=20))
    full = "the context of 60 tokens has no room for more"
    expected = {
        "one": (),
        "a much longer question": (f"the model did not read the first 2 messages of this chat: {full}",),
        "q" * 50: (
            f"the model did not read the first 4 messages of this chat: {full}",
            f"the model did not read the first {50 + 4 - 40} tokens of your message: {full}",
        ),
        "q": ("the answer was stopped at 20 tokens: the limit that is set",),
    }
    for question, notes in expected.items():
        if question == "q":
            session.reset()
        list(session.reply(question))
        assert session.notes == notes, question


def test_reset_forgets_the_turns_but_keeps_system_prompt_and_settings(fake):
    engine = fake("a", "b")
    session = ChatSession(engine, system="S")
    session.settings = ChatSettings(temperature=0.0, max_tokens=7)
    list(session.reply("1"))
    session.reset()
    list(session.reply("2"))
    assert engine.prompts[1] == "<|bos|><|user_start|>S\n\n2<|user_end|><|assistant_start|>"
    assert (engine.requests[1]["sampling"], engine.requests[1]["max_tokens"]) == (Sampling(0.0, 50), 7)


def test_session_draws_each_turn_with_a_different_seed(fake):
    engine, again, other = fake("a", "b"), fake("a", "b"), fake("a", "b")
    for target, seed in ((engine, 1), (again, 1), (other, 2)):
        session = ChatSession(target, settings=ChatSettings(seed=seed))
        list(session.reply("x"))
        list(session.reply("x"))
    seeds = [request["seed"] for request in engine.requests]
    assert seeds == [request["seed"] for request in again.requests]
    assert len({*seeds, *(request["seed"] for request in other.requests)}) == 4


def test_session_remembers_a_partial_answer(fake):
    engine = fake("xyz", "d")
    session = ChatSession(engine)
    pieces = session.reply("1")
    assert next(pieces) + next(pieces) == "xy"
    pieces.close()
    assert session.turns == (Message("user", "1"), Message("assistant", "xy"))
    list(session.reply("2"))
    assert "<|assistant_start|>xy<|assistant_end|>" in engine.prompts[1]


def test_reply_streams_random_bytes_as_python_decodes_them(tokenizer):
    """The joined pieces of 4,000 valid and invalid byte sequences equal the decoded whole."""
    generator = np.random.default_rng(0)
    byte_ids = {tokenizer.id_to_bytes(i): i for i in range(10, 266)}
    engine = FakeEngine(tokenizer)
    session = ChatSession(engine)
    valid = "aß水\U0001f600".encode()
    for number in range(4000):
        size = int(generator.integers(1, 8))
        raw = generator.bytes(size) if number % 2 else bytes(generator.choice(list(valid), size=size).astype(np.uint8))
        engine.answers = [[byte_ids[bytes([byte])] for byte in raw]]
        session.turns = ()
        pieces = list(session.reply("x"))
        assert "".join(pieces) == codecs.decode(raw, "utf-8", "replace")
        assert all(pieces)


def test_session_shows_calculator_calls_and_remembers_them_as_parts(tokenizer):
    """The remembered answer renders to the generated tokens."""
    ids = [tokenizer.special(f"<|{name}|>") for name in ("python_start", "python_end", "output_start", "output_end")]
    python_start, python_end, output_start, output_end = ids
    encode = tokenizer.encode
    answer = [*encode("is "), python_start, *encode("6*7"), python_end, output_start, *encode("42"), output_end]
    answer += encode("ok")
    session = ChatSession(FakeEngine(tokenizer, answer))
    assert "".join(session.reply("6*7?")) == "is [6*7][= 42]ok"
    parts = (Part("text", "is "), Part("python", "6*7"), Part("python_output", "42"), Part("text", "ok"))
    assert session.turns[-1] == Message("assistant", parts)
    rendered = render(tokenizer, Conversation(session.turns)).ids
    assert rendered[-len(answer) - 1 : -1] == answer


def test_parse_answer_ends_an_unclosed_part_with_the_answer(tokenizer):
    start = tokenizer.special("<|python_start|>")
    assert parse_answer(tokenizer, [start, *tokenizer.encode("1+")]) == (Part("python", "1+"),)
    assert parse_answer(tokenizer, tokenizer.encode("plain")) == "plain"
    assert parse_answer(tokenizer, []) == ""


def test_session_with_a_real_model_is_reproducible_and_fits_the_context(random_model, tokenizer):
    """Six turns are more than the context of 64 (or 256) tokens."""

    def chat() -> list[str]:
        session = ChatSession(Engine(random_model, tokenizer), settings=ChatSettings(max_tokens=12))
        return ["".join(session.reply(f"question number {turn}")) for turn in range(6)]

    assert chat() == chat()
