"""The tokenizer stage: it trains on training documents only and measures on held-out ones."""

from __future__ import annotations

import dataclasses

import pytest

from nanochat.data.documents import single_pass
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError, StageError
from nanochat.stages import tokenizer as stage
from nanochat.tokenizer.bpe import Tokenizer


def test_tokenizer_stage_saves_a_tokenizer_and_measures_held_out_compression(
    make_context, tokenizer_spec, documents, tmp_path
):
    context = make_context(tokenizer_spec)
    result = stage.run(context.job, context)
    tokenizer = Tokenizer.load(context.out)
    assert result.metrics["vocab_size"] == tokenizer.vocab_size <= 300
    held_out = list(single_pass(documents, "validation", base=tmp_path))
    token_count = sum(len(tokenizer.encode(text)) for text in held_out)
    assert result.metrics["bytes_per_token"] == sum(len(text.encode()) for text in held_out) / token_count
    assert result.metrics["bytes_per_token"] > 1


def test_tokenizer_stage_says_if_the_text_is_too_small_for_the_vocabulary(make_context, tokenizer_spec, capsys):
    """The line is a note, which the terminal and the report show."""
    context = make_context(tokenizer_spec)
    stage.run(context.job, context)
    assert "note:" not in capsys.readouterr().out
    context = make_context(tokenizer_spec.model_copy(update={"vocab_size": 20_000}))
    pieces = int(stage.run(context.job, context).metrics["vocab_size"])
    said = capsys.readouterr().out
    assert f"note: the text is only enough for a vocabulary of {pieces:,} pieces, not of the 20,000 that" in said


def test_tokenizer_stage_replaces_the_metrics_of_a_killed_attempt(make_context, tokenizer_spec):
    for _ in range(2):
        context = make_context(tokenizer_spec)
        stage.run(context.job, context)
    assert len(context.folder.metrics.read_text().splitlines()) == 1


def test_tokenizer_stage_does_not_learn_from_held_out_documents(make_context, tokenizer_spec, documents, tmp_path):
    """A letter that occurs only in held-out documents does not become a piece."""
    folder = tmp_path / "documents"
    held_out = set(single_pass(documents, "validation", base=tmp_path))
    for path in folder.glob("*.txt"):
        if path.read_text() in held_out:
            path.unlink()
    spec = dataclasses.replace(documents, validation_hash_frac=None, validation_shard="held.txt")
    (folder / "held.txt").write_text("ΩΩΩΩ " * 500)
    context = make_context(tokenizer_spec.model_copy(update={"source": spec}))
    stage.run(context.job, context)
    tokenizer = Tokenizer.load(context.out)
    assert len(tokenizer.encode("Ω")) == len("Ω".encode())


def test_tokenizer_stage_error_names_a_missing_source(make_context, tokenizer_spec):
    missing = SourceSpec(name="documents", path=("/nowhere/*.txt",))
    context = make_context(tokenizer_spec.model_copy(update={"source": missing}))
    with pytest.raises(PreflightError, match="nowhere"):
        stage.run(context.job, context)


def test_tokenizer_stage_requires_held_out_documents(make_context, tokenizer_spec, tmp_path):
    (tmp_path / "line.txt").write_text("only one line")
    spec = SourceSpec(name="line", path=(str(tmp_path / "line.txt"),))
    context = make_context(tokenizer_spec.model_copy(update={"source": spec}))
    with pytest.raises(StageError, match="no validation document"):
        stage.run(context.job, context)
