"""A model from Python: its answers are those of the command line, its logits and scores those of the network."""

from __future__ import annotations

import numpy as np
import pytest

import nanochat
from nanochat.cli.chat import main as chat_command
from nanochat.errors import RecipeError


@pytest.fixture(scope="module")
def model(model_folder):
    return nanochat.load(model_folder, device="cpu")


def test_chat_gives_the_answer_of_the_command_and_streams_it(model, model_folder, capsys):
    pieces: list[str] = []
    answer = model.chat("hello", max_tokens=12, seed=5, on_text=pieces.append)
    assert "".join(pieces) == answer
    options = ["--max-tokens", "12", "--seed", "5", "--device", "cpu"]
    assert chat_command([str(model_folder), "--prompt", "hello", *options]) == 0
    assert capsys.readouterr().out == f"{answer}\n"


def test_complete_gives_the_text_of_the_command(model, model_folder, capsys):
    text = model.complete("the cat", max_tokens=12, temperature=0)
    options = ["--raw", "--max-tokens", "12", "--temperature", "0", "--device", "cpu"]
    assert chat_command([str(model_folder), "--prompt", "the cat", *options]) == 0
    assert capsys.readouterr().out == f"{text}\n"


def test_a_conversation_is_what_a_chat_with_these_turns_would_be(model, model_folder, monkeypatch, capsys):
    first = model.chat("hello", system="be", max_tokens=6)
    lines = iter(["hello", "and"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, "/quit"))
    assert chat_command([str(model_folder), "--system", "be", "--max-tokens", "6", "--device", "cpu"]) == 0
    answers = capsys.readouterr().out
    messages = [
        {"role": "system", "content": "be"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "and"},
    ]
    assert answers == f"{first}\n{model.chat(messages, max_tokens=6)}\n"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user"}],
        [{"role": "tool", "content": "a"}],
    ],
)
def test_what_is_no_conversation_is_refused(model, messages):
    with pytest.raises(RecipeError, match="conversation"):
        model.chat(messages)


def test_a_score_is_the_sum_of_the_log_softmax_of_the_logits(model):
    """In float64 from the logits of the whole row: position t predicts token t + 1."""
    given, text = "the cat", " sat on"
    row = [model.tokenizer.bos_id, *model.tokenizer.encode(given + text)]
    start = 1 + len(model.tokenizer.encode(given))
    logits = model.logits(given + text).astype(np.float64)
    assert logits.shape == (len(row), model.tokenizer.vocab_size) and np.ptp(logits) > 1
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = sum(logprobs[t - 1, row[t]] for t in range(start, len(row)))
    score = model.score(text, given=given)
    assert score.tokens == len(row) - start
    assert score.logprob == pytest.approx(expected, rel=1e-4)  # float32 logits, summed in another order
    assert not score.is_greedy


def test_logits_of_ids_are_those_of_their_text(model):
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode("the mat")]
    np.testing.assert_array_equal(model.logits(ids), model.logits("the mat"))


@pytest.mark.parametrize("text", ["x" * 500, [], [-1], [10**6]])
def test_logits_of_what_the_model_cannot_read_are_refused(model, text):
    with pytest.raises(RecipeError):
        model.logits(text)


def test_a_score_of_nothing_is_refused(model):
    with pytest.raises(RecipeError, match="at least one"):
        model.score("", given="the")
    with pytest.raises(RecipeError, match="at least one"):
        model.score("x" * 500)


def test_what_the_model_did_not_read_is_a_warning(model):
    """The context has 64 tokens in each case, and the oldest text is dropped."""
    long = "x y z " * 100
    with pytest.warns(RuntimeWarning, match="did not read the first .* tokens of your message"):
        model.chat(long, max_tokens=4)
    with pytest.warns(RuntimeWarning, match="did not read the first .* tokens"):
        model.complete(long, max_tokens=4)
    earlier = [{"role": "user", "content": long}, {"role": "assistant", "content": "a"}]
    with pytest.warns(RuntimeWarning, match="did not read the first 2 messages of this chat"):
        model.chat([*earlier, {"role": "user", "content": "b"}], max_tokens=4)


def test_a_negative_seed_is_refused(model):
    with pytest.raises(RecipeError, match="seed is -1: give a whole number"):
        model.chat("hello", seed=-1, max_tokens=4)


def test_a_late_load_warns_that_products_are_slow(model_folder, monkeypatch):
    monkeypatch.setattr("nanochat.runtime._prepared", {})
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.warns(RuntimeWarning, match="MLX was imported before"):
        nanochat.load(model_folder, device="cpu")
