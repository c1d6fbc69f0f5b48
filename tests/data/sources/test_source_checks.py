"""Tests that a source that cannot be read is refused before any work, with the source and the file named."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.documents import single_pass
from nanochat.data.files import digests, file_sizes
from nanochat.data.ingest.convert import convert
from nanochat.data.source_checks import check_documents, check_rows
from nanochat.data.sources.source_spec import SourceSpec, describe
from nanochat.errors import PreflightError, StageError
from nanochat.storage.checked_json import read_checked

TEXTS = [f"text {i}" for i in range(400)]


def damaged_file(files, kind):
    """Write two good files, damage the second one, and return its path."""
    files.parquet("a.parquet", TEXTS)
    path = files.parquet("b.parquet", TEXTS)
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "cut off":
            path.write_bytes(path.read_bytes()[:-9])
        case "not parquet":
            path.write_bytes(b"text" * 100)
        case "no rows":
            pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
        case "no text":
            files.parquet("b.parquet", ["", None, ""])
        case "column":
            files.parquet("b.parquet", TEXTS, column="body")
        case "type":
            files.parquet("b.parquet", list(range(10)))
        case "damaged page":
            content = bytearray(path.read_bytes())
            content[20:400] = bytes(380)
            path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut off", "damaged or cut off"),
        ("not parquet", "damaged or cut off"),
        ("damaged page", "damaged or cut off"),
    ],
)
def test_check_documents_names_the_damaged_file(files, base, kind, message):
    path = damaged_file(files, kind)
    with pytest.raises(PreflightError, match=message) as caught:
        check_documents(files.source("*.parquet"), ("train", "validation"), base=base)
    assert str(path) in str(caught.value) and "source `mine`" in str(caught.value)
    assert not base.exists()


@pytest.mark.parametrize("kind", ["empty", "no rows", "no text"])
def test_check_documents_leaves_out_files_without_text_and_refuses_a_source_of_such_files(files, base, kind):
    damaged_file(files, kind)
    check_documents(files.source("*.parquet"), ("train", "validation"), base=base)
    files.parquet("c.parquet", [" ", None])
    files.text("d.txt", "\n \n")
    with pytest.raises(PreflightError, match="source `mine`") as caught:
        check_documents(files.source("[b-d].*"), ("train", "validation"), base=base)
    assert all(name in str(caught.value) for name in ("b.parquet", "c.parquet", "d.txt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "x"', r"a\.jsonl:1: not JSON"),
        ("a.jsonl", '{"body": "x"}', r"a\.jsonl:1: no key `text`; its keys are: body"),
        ("a.jsonl", '{"text": 5}', r"a\.jsonl:1: `text` is int, not text"),
        ("a.jsonl", "[]", r"a\.jsonl:1: expected an object, found list"),
        ("a.txt", b"\xff text", r"a\.txt:1: not UTF-8"),
    ],
)
def test_check_documents_names_the_bad_line(files, base, name, content, message):
    files.text(name, content)
    with pytest.raises(PreflightError, match=message) as caught:
        check_documents(files.source(name), ("train",), base=base)
    assert "source `mine`" in str(caught.value)


def test_check_documents_reads_small_sources_whole_and_large_ones_to_the_first_document(files, base, monkeypatch):
    """Eleven bad lines at the end of 511 are more than 1 %; ten are allowed."""
    good = "".join(f'{{"text": "{text} {i}"}}\n' for i, text in enumerate(TEXTS + TEXTS[:100]))
    path = files.text("a.jsonl", good + "broken\n" * 10)
    check_documents(files.source("a.jsonl"), ("train", "validation"), base=base)
    files.text("a.jsonl", good + "broken\n" * 11)
    with pytest.raises(PreflightError, match="11 bad rows, but `max_bad_rows` allows 10") as caught:
        check_documents(files.source("a.jsonl"), ("train", "validation"), base=base)
    assert all(f"{path}:{line}: not JSON" in str(caught.value) for line in (501, 502, 503))
    check_documents(files.source("a.jsonl", max_bad_rows=0.03), ("train", "validation"), base=base)
    monkeypatch.setattr(file_sizes, "SMALL_BYTES", 10)
    check_documents(files.source("a.jsonl", validation_hash_frac=0.5), ("train", "validation"), base=base)


def test_check_documents_warns_if_a_hash_holds_out_next_to_nothing(files, base):
    """Of two texts, the one with the smaller sha256 is held out. That is the short one in the first case only."""
    files.text("notes/short.md", "short note")
    notes = []
    for long in ("a fourth" * 2000, "another" * 2000):
        files.text("notes/long.md", long)
        check_documents(files.source("notes"), ("train", "validation"), base=base, notify=notes.append)
    (note,) = notes
    assert "only 10 characters of 16,010 are held out" in note


def test_check_documents_explains_a_split_without_documents(files, base):
    files.jsonl("a.jsonl", [{"text": "the only one"}])
    check_documents(files.source("a.jsonl"), ("train",), base=base)
    with pytest.raises(PreflightError, match="no validation document; its text is a single line"):
        check_documents(files.source("a.jsonl"), ("train", "validation"), base=base)
    with pytest.raises(PreflightError, match=r"no validation shard b\.parquet"):
        check_documents(files.source("a.jsonl", validation_shard="b.parquet"), ("train",), base=base)


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("column", "no column `text`; its columns are: body; all its rows (400) are left out"),
        ("type", "column `text` holds int64, not text; all its rows (10) are left out"),
    ],
)
def test_check_documents_leaves_out_a_file_without_the_column_and_refuses_a_source_of_such_files(
    files, base, kind, problem
):
    path, notes = damaged_file(files, kind), []
    source = files.source("*.parquet")
    check_documents(source, ("train", "validation"), base=base)
    texts = [*single_pass(source, "train", base=base, notify=notes.append)]
    assert {*texts, *single_pass(source, "validation", base=base)} == {*TEXTS}
    assert notes == [f"{describe(source)}: a file was left out: {path}: {problem}"]
    with pytest.raises(
        PreflightError, match=r"no file holds text; left out: b\.parquet \(no usable row\); bad"
    ) as caught:
        check_documents(files.source("b.parquet"), ("train",), base=base)
    assert str(caught.value).endswith(f"{path}: {problem}")


@pytest.mark.parametrize("suffix", ["md", "csv"])
def test_check_documents_opens_the_memory_of_digests_no_more_often_for_more_files(files, base, monkeypatch, suffix):
    """The memory lists every file of the base folder, so opening it for each file takes time that grows as a square."""
    opened = []

    def read(path):
        opened.append(path)
        return read_checked(path)

    monkeypatch.setattr(digests, "read_checked", read)
    counts = []
    for number in (2, 20):
        for i in range(number):
            path = files.text(f"{number}/{i}.{suffix}", f"text\ntext {i}\n")
            if suffix == "csv":
                convert(path, base=base)
        opened.clear()
        check_documents(files.source(f"{number}"), ("train", "validation"), base=base)
        counts.append(len(opened))
    assert counts[0] == counts[1]


def test_check_documents_accepts_good_sources(files, base):
    files.parquet("a.parquet", TEXTS)
    files.parquet("b.parquet", TEXTS)
    check_documents(files.source("*.parquet", validation_shard="b.parquet"), ("train", "validation"), base=base)
    check_documents(SourceSpec(name="x", builtin="python-stdlib"), ("train", "validation"), base=base)
    with pytest.raises(PreflightError, match="holds words, not documents"):
        check_documents(SourceSpec(name="x", builtin="spelling"), ("train",), base=base)


def test_check_rows_of_large_files_parses_the_first_row_of_each_file_of_the_split(files, base, monkeypatch):
    monkeypatch.setattr(file_sizes, "SMALL_BYTES", 10)
    for name in ("train-0.parquet", "train-1.parquet", "test-0.parquet"):
        files.parquet(name, [name, "more"])
    parsed = []
    check_rows(files.source(""), "train", parsed.append, base=base)
    assert parsed == [{"text": "train-0.parquet"}, {"text": "train-1.parquet"}]

    def refuse(row):
        if row["text"] == "train-1.parquet":
            raise StageError("not of the form")

    with pytest.raises(PreflightError, match=r"source `mine` .*train-1\.parquet row 1: not of the form"):
        check_rows(files.source(""), "train", refuse, base=base)
    with pytest.raises(PreflightError, match=r"no file of split `validation`; .*test \(1\), train \(2\)"):
        check_rows(files.source(""), "validation", refuse, base=base)


def test_check_rows_of_small_files_parses_the_requested_rows(files, base):
    files.jsonl("train-0.jsonl", [{"a": i} for i in range(5)])
    files.jsonl("train-1.jsonl", [{"a": 5}, {"b": 6}, {"a": 7}])

    def parse(row):
        if "a" not in row:
            raise StageError("the row is bad")

    with pytest.raises(PreflightError, match=r"source `mine` .*train-1\.jsonl:2: the row is bad"):
        check_rows(files.source(""), "train", parse, base=base)
    files.text("train-2.jsonl", '{"a": 8}\n{broken\n')
    check_rows(files.source("train-0.jsonl", "train-2.jsonl"), "train", lambda *_: None, base=base, max_rows=6)
    with pytest.raises(PreflightError, match=r"source `mine` .*train-2\.jsonl:2: not JSON"):
        check_rows(files.source("train-0.jsonl", "train-2.jsonl"), "train", lambda *_: None, base=base)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt"])
def test_check_documents_names_a_git_lfs_pointer(files, base, name):
    files.text(name, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(PreflightError, match=r"a\.\w+: a Git LFS pointer, not the data: run `git lfs pull`"):
        check_documents(files.source(name), ["train"], base=base)


def test_check_documents_says_that_a_file_has_no_usable_row(files, base):
    files.text("a.jsonl", "bad\n")
    files.text("b.jsonl", "\n")
    with pytest.raises(PreflightError, match=r"left out: b\.jsonl \(empty\); a\.jsonl \(no usable row\); bad rows"):
        check_documents(files.source("*.jsonl"), ["train"], base=base)
