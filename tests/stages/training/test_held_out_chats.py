"""Chats that fine-tuning holds out: they and their duplicates are never trained on, and each has a row of its own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nanochat.checkpoint.model_folder import load_tokenizer
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import StageError
from nanochat.plan.specs.inputs import SftItem
from nanochat.stages.training.sft_data import held_out_chats, read_sft_data


def texts(task):
    return [task[i].conversation.messages[0].text() for i in range(len(task))]


@pytest.fixture
def make_source(tmp_path):
    """A function that writes chats into files by name and returns their source."""

    def make(name, **questions_by_file):
        folder = tmp_path / name
        folder.mkdir()
        for file, questions in questions_by_file.items():
            lines = (json.dumps({"question": q, "answer": f"about {q}"}) + "\n" for q in questions)
            (folder / f"{file}.jsonl").write_text("".join(lines))
        return SourceSpec(name=name, path=(str(folder / "*.jsonl"),))

    return make


def item(source, **changes):
    fields = {"name": source.name, "task": "conversations", "split": "train", "max_examples": None, "repeat": 1}
    return SftItem(source=source, **{**fields, **changes})


@pytest.fixture
def read(make_context, make_sft_spec):
    """A function that returns the data of a fine-tuning on some items."""

    def read(*items):
        spec = make_sft_spec(*items, steps=1)
        return read_sft_data(spec, make_context(spec))

    return read


def test_chats_of_a_held_out_split_and_their_duplicates_are_not_trained_on(make_source, read):
    """`d` is in both splits and in the other task, and `x` twice in training, which is no reason to leave it out."""
    chats = make_source("chats", train=["a", "b", "d", "x", "x"], test=["c", "d"])
    others = make_source("others", all=["d", "e", "c"])
    data = read(item(chats, validation_split="test"), item(others))
    assert sorted(texts(data.held_out[0])) == ["c", "d"]
    assert texts(data.mixture) == ["a", "b", "x", "x", "e"]


def test_rows_of_the_training_split_can_be_held_out(make_source, read):
    data = read(item(make_source("chats", all=["a", "b", "c", "d", "a"]), validation_split="train[-2:]"))
    assert sorted(texts(data.held_out[0])) == ["a", "d"]
    assert texts(data.mixture) == ["b", "c"]


def test_a_share_of_chats_is_held_out_with_all_duplicates(make_source, read):
    """Every question is there twice. A fifth is held out: 40 of 200 questions, with a standard deviation of 6."""
    questions = [str(i) for i in range(200)]
    data = read(item(make_source("chats", all=questions + questions), validation_frac=0.2))
    held_out, trained = texts(data.held_out[0]), texts(data.mixture)
    assert set(held_out).isdisjoint(trained)
    assert sorted(held_out + trained) == sorted(questions + questions)
    assert 2 * 20 < len(held_out) < 2 * 60


def test_a_share_holds_out_the_same_chats_when_more_are_added(make_source, read):
    few, many = [str(i) for i in range(60)], [str(i) for i in range(120)]
    held_out = [
        set(texts(read(item(make_source(f"s{len(q)}", all=q), validation_frac=0.3)).held_out[0])) for q in (few, many)
    ]
    assert held_out[0] == held_out[1] & set(few)


@pytest.mark.parametrize("frac", [1e-9, 1 - 1e-9])
def test_a_share_of_two_different_chats_holds_out_one(make_source, read, frac):
    data = read(item(make_source("chats", all=["a", "b"]), validation_frac=frac))
    assert (len(data.held_out[0]), len(data.mixture)) == (1, 1)


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ({"all": ["a", "a"]}, {"validation_frac": 0.5}, r"chats.validation: all its conversations \(2\) are equal"),
        (
            {"train": ["a", "b"], "test": ["b", "a"]},
            {"validation_split": "test"},
            r"sft.data.chats: all its conversations \(2\) are held out",
        ),
    ],
)
def test_a_task_without_chats_to_hold_out_or_to_train_on_is_refused(make_source, read, files, changes, message):
    with pytest.raises(StageError, match=message):
        read(item(make_source("chats", **files), **changes))


def test_held_out_chats_have_rows_of_their_own_and_share_the_tokens(make_source, read, pretrained, tmp_path):
    """Two tasks of 30 and 10 chats give three quarters and a quarter of the tokens, up to a chat of about 20."""
    sources = [
        make_source("a", train=["t"], test=[f"what follows {i}?" for i in range(30)]),
        make_source("b", train=["t"], test=[f"spell {i}" for i in range(10)]),
    ]
    data = read(*(item(source, validation_split="test") for source in sources))
    tokenizer = load_tokenizer(tmp_path / "pretrain" / "out" / "model")
    batches = held_out_chats(data.held_out, tokenizer, sequence_len=64, max_tokens=400, tokens_per_batch=130)
    assert all(batch.inputs.size <= 130 for batch in batches)
    rows = [(row, target) for batch in batches for row, target in zip(batch.inputs, batch.targets, strict=True)]
    lengths = {"what": 0, "spell": 0}
    for inputs, targets in rows:
        assert list(inputs).count(tokenizer.bos_id) >= 1
        text = tokenizer.decode([int(i) for i in inputs if i != tokenizer.bos_id])
        scored = tokenizer.decode([int(i) for i in targets[targets >= 0]])
        word = "what" if "what" in text else "spell"
        question = text.split("about ")[1].split("<|")[0]
        assert scored.replace("<|assistant_end|>", "") == f"about {question}"
        lengths[word] += int(np.flatnonzero(targets >= 0)[-1]) + 2
    assert 300 <= lengths["what"] < 340
    assert 100 <= lengths["spell"] < 140


def test_held_out_chats_that_fit_no_row_are_refused(make_source, read, pretrained, tmp_path):
    data = read(item(make_source("chats", train=["t"], test=["7" * 99]), validation_split="test"))
    tokenizer = load_tokenizer(tmp_path / "pretrain" / "out" / "model")
    with pytest.raises(StageError, match="none of 1 held-out conversation fits 17 tokens"):
        held_out_chats(data.held_out, tokenizer, sequence_len=16, max_tokens=99, tokens_per_batch=64)
