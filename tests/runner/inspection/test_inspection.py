"""Looking at data: counts, duplicates, scripts, refused rows, and the loss mask."""

from __future__ import annotations

import json

import pytest

from nanochat.errors import PreflightError, RecipeError
from nanochat.runner.inspection.inspect_sources import inspect_sources
from nanochat.runner.inspection.split_report import Survey, quantiles
from nanochat.runner.inspection.survey_splits import marked_runs
from nanochat.tokenizer import bpe
from nanochat.tokenizer.chat_format import Conversation, Message, Part, render


def look(bench, name, *overrides, limit=1000):
    (source,) = inspect_sources(bench.prepare(*overrides), name, limit=limit)
    return source, list(source.splits)


def test_survey_counts_characters_bytes_and_duplicates():
    survey = Survey()
    for text in ("abc", "äöü", "abc", "漢字"):
        survey.add(text)
    assert survey.lengths == [3, 3, 3, 2]
    assert survey.size_bytes == 3 + 6 + 3 + 6
    assert survey.duplicates == 1
    assert survey.scripts() == [("Latin", 9 / 11), ("Han", 2 / 11)]


def test_survey_names_scripts_by_unicode():
    survey = Survey()
    survey.add("да αβγ カ 12 ...")
    assert survey.scripts() == [("Greek", 3 / 6), ("Cyrillic", 2 / 6), ("Katakana", 1 / 6)]


def test_quantiles_are_values_that_occur():
    assert quantiles(range(101)) == [0, 10, 50, 90, 99, 100]
    assert quantiles([7]) == [7] * 6


def test_marked_runs_are_where_the_mask_is_one():
    """The expected mask is the one that training uses, with a tokenizer of whole pieces."""
    answer = (Part("text", "It is "), Part("python", "6*7"), Part("python_output", "42"), Part("text", "."))
    conversation = Conversation(
        (Message("user", "six times seven?"), Message("assistant", answer), Message("user", "ok"),
         Message("assistant", "context", is_trained=False))
    )  # fmt: skip
    trained = [text for text, is_trained in marked_runs(conversation) if is_trained]
    assert trained == ["It is <|python_start|>6*7<|python_end|>", ".<|assistant_end|>"]
    tokenizer = bpe.train(["six times seven 6*7 42 It is."], vocab_size=300, max_chars=999, max_document_chars=999)
    rendered = render(tokenizer, conversation)
    ids = [token for token, mask in zip(rendered.ids, rendered.mask, strict=True) if mask]
    specials = [tokenizer.special(name) for name in ("<|python_start|>", "<|python_end|>", "<|assistant_end|>")]
    plain = [token for token in ids if token not in specials]
    assert tokenizer.decode(plain) == "It is 6*7."


def test_documents_of_both_splits_are_all_of_the_source(bench):
    source, (train, validation) = look(bench, "text")
    assert source.facts == ["text: 1 file, 740 B"]
    assert train.is_whole and validation.is_whole
    assert train.survey.size_bytes + validation.survey.size_bytes == 740  # 10 lines of 14 bytes and 40 of 15
    assert train.texts[0].startswith("hello world ")


def test_limit_ends_the_reading(bench):
    _, (train, _) = look(bench, "text", limit=2)
    assert len(train.survey.lengths) == 2 and not train.is_whole
    assert next(train.lines()).startswith("train: the first 2 documents")


def test_tokens_are_counted_once_there_is_a_tokenizer(bench, monkeypatch):
    _, (train, _) = look(bench, "text")
    assert train.survey.token_lengths == []
    tokenizer = bpe.train(["hello world 0123456789\n"], vocab_size=300, max_chars=999, max_document_chars=999)
    monkeypatch.setattr("nanochat.runner.inspection.inspect_sources.existing_tokenizer", lambda prepared: tokenizer)
    _, (train, _) = look(bench, "text")
    assert sum(train.survey.token_lengths[:3]) == sum(len(tokenizer.encode(text)) for text in train.texts)


def test_rows_that_are_refused_are_named_with_their_reason(bench):
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "only"}, {"prompt": "a", "completion": "b", "id": 1}]
    (bench.folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, (report,) = look(bench, "chats")
    lines = "\n".join(report.lines())
    assert "rows that are not used: 1\n" in lines and "chats.jsonl:2: " in lines
    assert "keys that are ignored: id" in lines
    assert "duplicates: 1 (50.0%)" in lines


def test_bad_documents_are_named_and_too_many_end_the_reading(bench):
    (bench.folder / "text.jsonl").write_text('{"text": "good"}\n{"text": "fine"}\nbad\n')
    _, reports = look(bench, "text", f"sources.text.path={bench.folder}/text.jsonl")
    assert any("text.jsonl:3" in note for report in reports for note in report.notes)
    (bench.folder / "text.jsonl").write_text('{"text": "good"}\n{"text": "fine"}\n' + "bad\n" * 11)
    _, reports = look(bench, "text", f"sources.text.path={bench.folder}/text.jsonl")
    assert any(isinstance(report.error, PreflightError) for report in reports)


def test_an_unknown_source_is_refused_with_the_known_ones(bench):
    with pytest.raises(RecipeError, match="no source `texts`; it has: text, chats, words"):
        list(inspect_sources(bench.prepare(), "texts", limit=1))


def test_table_that_is_not_converted_shows_its_first_rows_and_how_to_go_on(bench):
    (bench.folder / "table.csv").write_text("title,body\nfirst,one\nsecond,two\n")
    source, splits = look(bench, "text", f"sources.text.path={bench.folder / 'table.csv'}")
    assert splits == []
    assert source.facts[0] == "text: 1 file, 32 B"
    assert "table.csv has no column `text`: set `sources.text.column`" in source.facts
    assert any("not converted yet" in fact and "fetch" in fact for fact in source.facts)
    assert source.facts[-3:] == [
        "table.csv: 2 rows with the columns title, body; the first ones:",
        '  title "first", body "one"',
        '  title "second", body "two"',
    ]


def test_table_with_the_column_that_is_read_has_no_warning(bench):
    (bench.folder / "table.csv").write_text("title,body\nfirst,one\n")
    source, _ = look(bench, "text", f"sources.text.path={bench.folder / 'table.csv'}", "sources.text.column=body")
    assert not any("no column" in fact for fact in source.facts)
