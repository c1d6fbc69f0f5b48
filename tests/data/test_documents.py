from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.documents import DocumentStream, single_pass
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.files.held_out_documents import chunk_text, cut_lines
from nanochat.data.files.readers import read_texts
from nanochat.data.loaders.stream_mixture import Mixture
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError, StageError

TEXTS = [f"document {i} " + "x" * (i % 7) for i in range(60)]


def take(stream, count):
    return list(itertools.islice(stream, count))


def draw(mixture, count):
    return [mixture.draw().document for _ in range(count)]


def whole(files, kind):
    """A source of TEXTS, in one of the formats."""
    match kind:
        case "parquet":
            files.parquet("a.parquet", TEXTS[:25], row_group_size=4)
            files.parquet("b.parquet", TEXTS[25:], row_group_size=1000)
            return files.source("*.parquet")
        case "jsonl":
            files.jsonl("a.jsonl", [{"text": text} for text in TEXTS[:10]])
            files.jsonl("b.jsonl", [{"text": text, "other": 1} for text in TEXTS[10:]])
            return files.source("a.jsonl", "b.jsonl")
        case "txt":
            files.text("a.txt", "".join(f"{text}\n" for text in TEXTS))
            return files.source("a.txt", max_document_chars=20)
        case ".jsonl.gz" | ".ndjson.zst":
            files.compressed(f"a{kind}", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:25]))
            files.compressed(f"b{kind}", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[25:]))
            return files.source(f"*{kind}")
        case ".txt.bz2" | ".md.xz" | ".py.zst":
            files.compressed(f"a{kind}", "".join(f"{text}\n" for text in TEXTS))
            return files.source(f"a{kind}", max_document_chars=20)
        case ".html" | ".html.gz":
            files.compressed(f"a{kind}", "".join(f"<p>{text}</p>" for text in TEXTS))
            return files.source(f"a{kind}", max_document_chars=20)
        case "pieces":
            files.parquet(
                "a.parquet", ["\n".join(TEXTS[i : i + 12]) + "\n" for i in range(0, 60, 12)], row_group_size=2
            )
            return files.source("a.parquet", max_document_chars=30, validation_hash_frac=0.01)
        case "stdlib":
            return SourceSpec(name="stdlib", builtin="python-stdlib", max_document_chars=200_000)


STREAMS = [".jsonl.gz", ".ndjson.zst", ".txt.bz2", ".md.xz", ".py.zst", ".html", ".html.gz"]
KINDS = ["parquet", "jsonl", "txt", "pieces"]


@pytest.mark.parametrize("kind", [*KINDS, *STREAMS, "stdlib"])
def test_document_stream_resumes_from_any_position_through_json(files, base, kind):
    """Resumed after n documents, it gives what a stream gives that never stopped, also in the next epoch."""
    source = whole(files, kind)
    uninterrupted = DocumentStream(source, "train", base=base)
    count = len(list(single_pass(source, "train", base=base))) + 10
    expected = take(uninterrupted, count)
    assert uninterrupted.epoch == 1
    for n in {*range(0, min(count, 70), 3 if count < 100 else 35), count - 11, count - 10, count - 9}:
        stream = DocumentStream(source, "train", base=base)
        assert take(stream, n) == expected[:n]
        resumed = DocumentStream(source, "train", base=base, start=json.loads(json.dumps(stream.position())))
        assert take(resumed, count - n) == expected[n:]
        assert resumed.position() == uninterrupted.position()


@pytest.mark.parametrize("n", [255, 256, 257, 511, 513, 699, 700, 701, 1199])
def test_document_stream_resumes_inside_a_large_row_group(files, base, n):
    files.parquet("a.parquet", [f"text {i}" for i in range(1200)], row_group_size=700)
    files.parquet("b.parquet", ["held out"])
    source = files.source("*.parquet", validation_shard="b.parquet")
    stream = DocumentStream(source, "train", base=base)
    take(stream, n)
    resumed = DocumentStream(source, "train", base=base, start=stream.position())
    assert take(resumed, 1300 - n) == [f"text {i % 1200}" for i in range(n, 1300)]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_document_belongs_to_exactly_one_split(files, base, kind):
    source = whole(files, kind)
    train = list(single_pass(source, "train", base=base))
    try:
        held_out = list(single_pass(source, "validation", base=base))
    except StageError:
        held_out = []
    assert sorted(train + held_out) == sorted(TEXTS)


def test_hash_holds_out_about_its_fraction(files, base):
    """A quarter of 4,000 documents is 1,000, with a standard deviation of 27."""
    files.parquet("a.parquet", [f"text {i}" for i in range(4000)])
    source = files.source("a.parquet", validation_hash_frac=0.25)
    assert 890 < len(list(single_pass(source, "validation", base=base))) < 1110


def test_validation_shard_is_held_out_whole(files, base):
    for name in "abc":
        files.parquet(f"{name}.parquet", [f"{name}{i}" for i in range(30)])
    source = files.source("*.parquet", validation_shard="b.parquet", max_files=1)
    assert list(single_pass(source, "validation", base=base)) == [f"b{i}" for i in range(30)]
    assert list(single_pass(source, "train", base=base)) == [f"a{i}" for i in range(30)]


def test_document_stream_names_a_missing_validation_shard(files, base):
    files.parquet("a.parquet", ["text"])
    with pytest.raises(PreflightError, match=r"no validation shard z\.parquet; its files are: a\.parquet"):
        DocumentStream(files.source("a.parquet", validation_shard="z.parquet"), "train", base=base)


def test_documents_are_cut_before_the_hash_decides(files, base):
    """Half of the 400 lines are held out (standard deviation 10), and of half of the texts one line of the two."""
    files.parquet("a.parquet", [f"{i} first\n{i} second\n" for i in range(200)])
    source = files.source("a.parquet", max_document_chars=12, validation_hash_frac=0.5)
    held_out = list(single_pass(source, "validation", base=base))
    assert 150 < len(held_out) < 250
    assert sorted(held_out + list(single_pass(source, "train", base=base))) == sorted(
        f"{i} {name}\n" for i in range(200) for name in ("first", "second")
    )
    assert (
        70
        < sum(f"{i} first\n" in held_out and f"{i} second\n" not in held_out for i in range(200))
        + sum(f"{i} first\n" not in held_out and f"{i} second\n" in held_out for i in range(200))
        < 130
    )


@settings(max_examples=80, deadline=None)
@given(st.text("ab\n", max_size=60), st.integers(1, 20))
def test_chunk_text_loses_nothing_and_splits_at_line_ends(text, limit):
    chunks = chunk_text(text, limit)
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= limit for chunk in chunks)
    assert all(chunk.endswith("\n") or "\n" not in chunk for chunk in chunks[:-1])


SMALL_TEXTS = {
    "two lines": ("a.txt", "one\ntwo\n", {}),
    "two lines that are equal": ("a.txt", "one\none\n", {}),
    "two lines and a blank one": ("a.txt", "one\n\ntwo", {}),
    "a note": ("a.txt", "".join(f"line {i} of a note\n" for i in range(300)), {}),
    "a text with old line ends": ("a.txt", "one\rtwo\r", {}),
    "a short book": ("a.txt", "".join(f"line {i} of a book\n" for i in range(1500)), {}),
    "a long line": ("a.txt", "word " * 4000, {}),
    "a line that the recipe cuts": ("a.txt", "one two three", {"max_document_chars": 7}),
    "one row": ("a.jsonl", '{"text": "one\\ntwo"}\n', {}),
    "two rows": ("a.jsonl", '{"text": "one"}\n{"text": "two"}\n', {}),
    "three equal rows": ("a.jsonl", '{"text": "one\\ntwo"}\n' * 3, {}),
}


@pytest.mark.parametrize("held_out_frac", [1e-9, 0.02, 0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("text", SMALL_TEXTS)
def test_documents_of_a_small_text_are_in_both_splits(files, base, text, held_out_frac):
    name, content, settings = SMALL_TEXTS[text]
    path = files.text(name, content)
    source = files.source(name, validation_hash_frac=held_out_frac, **settings)
    splits = [list(single_pass(source, split, base=base)) for split in ("train", "validation")]
    assert all(document.strip() for split in splits for document in split) and all(splits)
    whole = content if path.suffix == ".txt" else "".join(json.loads(line)["text"] for line in content.splitlines())
    assert sorted("".join(splits[0] + splits[1])) == sorted(whole)


def test_documents_of_a_small_text_are_held_out_by_their_hash(files, base):
    """None of the three hashes is below the share, so that the document with the smallest hash is held out."""
    texts = ["one", "two", "three"]
    files.parquet("a.parquet", texts)
    source = files.source("a.parquet", validation_hash_frac=0.01)
    smallest = min(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    assert list(single_pass(source, "validation", base=base)) == [smallest]
    assert list(single_pass(source, "train", base=base)) == [text for text in texts if text != smallest]


def test_held_out_rule_reads_no_further_than_the_first_held_out_document(files, base):
    """A later file that is damaged is not read. With a share of a half, two documents of each kind are near."""
    files.jsonl("a.jsonl", [{"text": f"text {i}"} for i in range(40)])
    files.text("b.parquet", "not parquet")
    assert next(DocumentStream(files.source("*", validation_hash_frac=0.5), "validation", base=base))
    with pytest.raises(StageError, match="damaged"):
        next(DocumentStream(files.source("*", validation_hash_frac=1e-9), "train", base=base))


def test_document_stream_refuses_a_single_line_with_advice_that_works(files, base):
    files.text("a.txt", "only one line")
    assert list(single_pass(files.source("a.txt"), "train", base=base)) == ["only one line"]
    with pytest.raises(StageError, match=r"source `mine` .*no validation .* single line of 13 characters") as caught:
        next(DocumentStream(files.source("a.txt"), "validation", base=base))
    field, value = re.search(r"`(\w+): (\d+)`", str(caught.value)).groups()
    source = files.source("a.txt", **{field: int(value)})
    assert all(next(DocumentStream(source, split, base=base)) for split in ("train", "validation"))


def test_document_stream_names_a_source_of_equal_documents(files, base):
    files.jsonl("a.jsonl", 100 * [{"text": "only one line"}])
    with pytest.raises(StageError, match="all its documents are the same text; add a document with another text"):
        next(DocumentStream(files.source("a.jsonl"), "validation", base=base))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_document_stream_refuses_a_source_without_text(files, base, split):
    files.parquet("a.parquet", ["", None])
    with pytest.raises(StageError, match=rf"source `mine` .*no {split} document; it holds no text"):
        next(DocumentStream(files.source("a.parquet"), split, base=base))


@settings(max_examples=80, deadline=None)
@given(st.text("ab\r\n ", min_size=1, max_size=60), st.integers(2, 12))
def test_cut_lines_loses_nothing_and_cuts_any_text_with_two_lines(text, count):
    parts = cut_lines(text, count)
    assert "".join(parts) == text
    assert all(part.strip() for part in parts) or parts == [text]
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(parts) > 1 or len(lines) < 2


def test_document_stream_skips_empty_texts_and_nulls(files, base):
    files.parquet("a.parquet", ["one", "", None, "two"])
    files.parquet("b.parquet", ["held out"])
    source = files.source("*.parquet", validation_shard="b.parquet")
    assert take(DocumentStream(source, "train", base=base), 3) == ["one", "two", "one"]


def test_mixture_gives_each_stream_its_share_and_resumes(files, base):
    """With weights 3 and 1, three of every four documents are of the first stream."""
    streams = []
    for name in "ab":
        files.parquet(f"{name}.parquet", [f"{name}{i}" for i in range(20)])
        streams.append(DocumentStream(files.source(f"{name}.parquet"), "train", base=base))
    mixture = Mixture(streams, [3.0, 1.0])
    start = json.loads(json.dumps(mixture.position()))
    texts = draw(mixture, 40)
    assert ["".join(sorted(text[0] for text in texts[i : i + 4])) for i in range(0, 40, 4)] == ["aaab"] * 10
    for n in range(0, 40, 7):
        mixture.seek(start)
        assert draw(mixture, n) == texts[:n]
        middle = json.loads(json.dumps(mixture.position()))
        draw(mixture, 5)
        mixture.seek(middle)
        assert draw(mixture, 40 - n) == texts[n:]


def reading_error(files, base):
    with pytest.raises((PreflightError, StageError)) as caught:
        take(DocumentStream(files.source("a*"), "train", base=base), 50)
    return str(caught.value)


def test_document_stream_names_a_missing_column_and_the_others(files, base):
    path = files.parquet("a.parquet", TEXTS, column="content")
    problem = f"{path}: no column `text`; its columns are: content; all its rows ({len(TEXTS)}) are left out"
    assert reading_error(files, base).endswith(f"no train document; it holds no text; left out: {problem}")


def test_document_stream_refuses_a_column_of_numbers(files, base):
    files.parquet("a.parquet", [1, 2])
    assert "column `text` holds int64, not text; all its rows (2) are left out" in reading_error(files, base)


@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_document_stream_names_a_damaged_parquet_file(files, base, damage):
    path = files.parquet("a.parquet", [f"{i}" * 50 for i in range(2000)])
    content = path.read_bytes()
    path.write_bytes(content[:-20] if damage == "cut off" else content[:4] + bytes(596) + content[600:])
    assert reading_error(files, base).startswith(f"{path}: damaged or cut off")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"not JSON: Expecting ',' delimiter at column"),
        (b'{"body": "x"}', "no key `text`; its keys are: body"),
        (b"[1]", "expected an object, found list"),
        (b'{"text": 5}', "`text` is int, not text"),
        (
            b'{"text": "\xff"}',
            "not UTF-8 at byte 11 of the line (0xFF): save the file as UTF-8",
        ),
        (b'{"text": "\\ud83d"}', "half of a surrogate pair"),
        (b"[" * 100_000, "JSON nested too deeply"),
    ],
)
def test_document_stream_skips_and_names_a_bad_line(files, base, line, message):
    path = files.text("a.jsonl", b'{"text": "fine"}\n\n' + line + b'\n{"text": "good"}\n{"text": "more"}')
    notes = []
    source = files.source("a.jsonl", validation_hash_frac=1e-9)
    stream = DocumentStream(source, "train", base=base, notify=notes.append)
    assert set(take(stream, 9)) <= {"fine", "good", "more"}
    assert len(notes) == 1
    assert f"a bad row was left out: {path}:3: " in notes[0]
    assert message in notes[0]


def bad_source(files, kind, *, good=30, bad=11, **settings):
    """Write `good` good rows and `bad` bad ones, of which the first three come first and the others at the end."""
    rows = [*range(100, 103), *range(good), *range(103, 100 + bad)]
    settings = {"validation_hash_frac": 1e-9, **settings}
    match kind:
        case "jsonl":
            files.text("a.jsonl", "".join("5\n" if i >= 100 else f'{{"text": "document {i}"}}\n' for i in rows))
        case "txt":
            files.text("a.txt", b"".join(b"\xe9\n" if i >= 100 else f"liné {i}\n".encode() for i in rows))
            settings["max_document_chars"] = 8
        case "parquet":
            texts = [b"\xe9" if i >= 100 else f"document {i}".encode() for i in rows]
            column = pa.array(texts, pa.binary()).view(pa.string())
            pq.write_table(pa.table({"text": column}), files.folder / "a.parquet", row_group_size=7)
    return files.source(f"a.{kind}", **settings)


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet"])
def test_limit_of_bad_rows_holds_in_a_pass_however_often_it_is_resumed(files, base, kind):
    """The position has the count, so a stream that resumes after every document fails at the same row."""
    source = bad_source(files, kind)
    stream = DocumentStream(source, "train", base=base)
    read = 0
    with pytest.raises(StageError, match=r"source `mine` .*: 11 bad rows, but `max_bad_rows` allows 10") as caught:
        for _ in range(60):
            next(stream)
            read += 1
            stream = stream.reopened(json.loads(json.dumps(stream.position())))
    assert read <= 30
    assert str(caught.value).count(str(files.folder / f"a.{kind}")) >= 1
    notes = []
    with pytest.raises(StageError) as caught:
        list(single_pass(source, "train", base=base, notify=notes.append))
    shown = 1 if kind == "txt" else 3  # lines of a text that are not UTF-8 are shown once per file
    assert len(notes) == shown
    assert str(caught.value).count(str(files.folder / f"a.{kind}")) == shown + 1
    lenient = dataclasses.replace(source, max_bad_rows=0.27)
    # Of a txt file, the last document is still being put together when the eleventh bad line is met.
    assert len(list(single_pass(lenient, "train", base=base))) - read in ((1,) if kind == "txt" else (0,))


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet"])
def test_limit_of_bad_rows_is_that_of_the_whole_source(files, base, kind):
    """The bad rows at the end of the first file count together with those of the second file."""
    source = bad_source(files, kind, bad=7)
    path = files.folder / f"a.{kind}"
    (files.folder / f"b.{kind}").write_bytes(path.read_bytes())
    both = dataclasses.replace(source, path=(str(files.folder),))
    with pytest.raises(StageError, match="11 bad rows"):
        take(DocumentStream(both, "train", base=base), 61)
    notes = []
    single = DocumentStream(source, "train", base=base, notify=notes.append)
    take(single, 100)
    assert notes[-1].endswith(": 7 bad rows were left out")


def test_document_stream_leaves_out_and_counts_rows_without_text(files, base):
    texts = ["one", None, "", " \n", "two"]
    files.parquet("a.parquet", texts)
    files.jsonl("a.jsonl", [{"text": text} for text in texts])
    for name in ("a.parquet", "a.jsonl"):
        notes = []
        source = files.source(name, validation_hash_frac=1e-9)
        assert set(take(DocumentStream(source, "train", base=base, notify=notes.append), 5)) <= {"one", "two"}
        where = f"{files.folder / name}{':2' if name.endswith('l') else ' row 2'}"
        assert notes == [
            f"source `mine` ({files.folder / name}): rows without text are left out; the first is {where}",
            f"source `mine` ({files.folder / name}): 3 rows without text were left out",
        ]


def test_document_stream_refuses_a_source_of_words(base):
    with pytest.raises(PreflightError, match="holds words, not documents"):
        DocumentStream(SourceSpec(name="w", builtin="spelling"), "train", base=base)


@pytest.mark.parametrize(
    ("name", "bad"),
    [("a.jsonl", b"broken\n"), ("a.txt", b"\xe9\n"), ("a.jsonl.zst", b"broken\n"), ("a.txt.xz", b"\xe9\n")],
)
def test_document_stream_refuses_to_resume_in_a_file_that_lost_a_line(files, base, name, bad):
    good = [f'{{"text": "line {i}"}}\n'.encode() for i in range(20)]
    files.compressed(name, b"".join([*good[:5], bad, *good[5:]]))
    stream = DocumentStream(files.source(name, max_document_chars=20), "train", base=base)
    take(stream, 10)
    next(stream.reopened(stream.position()))
    files.compressed(name, b"".join(good))
    with pytest.raises(PreflightError, match=r"changed before line \d+, where the checkpoint continues"):
        next(stream.reopened(stream.position()))


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [("utf-32", "UTF-32 text: save"), ("utf-16-be", "NUL bytes: save it as UTF-8")],
)
def test_document_stream_leaves_out_a_file_that_is_not_utf8_text(files, base, suffix, encoding, message):
    """The file is named once, and a stream that continues after it does not count it again."""
    good = 'good\n{"text": "good"}\n'
    files.text(f"a.{suffix}", 20 * '{"text": "wide"}\n'.encode(encoding))
    files.text(f"b.{suffix}", good.encode() if suffix == "txt" else good[5:].encode())
    notes = []
    source = files.source(f"*.{suffix}", validation_hash_frac=1e-9)
    stream = DocumentStream(source, "train", base=base, notify=notes.append)
    texts = take(stream, 2)
    assert all("good" in text and "\0" not in text for text in texts)
    assert len(notes) == 1 and message in notes[0]
    assert take(stream.reopened(stream.position()), 1) == take(stream, 1)
    bad_file = ReadableFile(files.folder / f"a.{suffix}")
    assert [cursor for _, cursor in read_texts(bad_file, "text", (0, 0, 0), max_chars=None)] == [(0, 1, 1)]
    assert list(read_texts(bad_file, "text", (0, 1, 1), max_chars=None)) == []
