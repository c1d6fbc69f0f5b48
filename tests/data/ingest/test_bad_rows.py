"""Tests that bad rows of converted files are skipped, counted and named by the user's file and line."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile

import pyarrow as pa
import pytest

from nanochat.data.documents import DocumentStream, single_pass
from nanochat.data.ingest.convert import convert
from nanochat.data.source_checks import check_documents, check_rows
from nanochat.data.sources.source_contents import resolve_files
from nanochat.errors import PreflightError, StageError
from nanochat.tasks.conversations import read_conversations
from nanochat.tasks.generative.gsm8k import parse_word_problem

DEEP = "[" * 5000 + "]" * 5000
DIGITS = "7" * 5000
PROBLEMS = {
    "an element that is no object": ("7", "expected an object, a text or a list of messages, found `7`"),
    "null": ("null", "expected an object, a text or a list of messages, found `null`"),
    "a list of numbers": ("[1, 2]", "expected an object, a text or a list of messages, found a list"),
    "half of a surrogate pair": (r'{"text": "a \ud83d"}', "holds half of a surrogate pair"),
    "half of a pair in a key": (r'{"text": "a", "\ud83d": 1}', "holds half of a surrogate pair"),
    "a long number": (f'{{"text": "a", "n": [{DIGITS}]}}', "holds a number of more than 4,300 digits"),
    "deep nesting": (f'{{"text": "a", "n": {DEEP}}}', "JSON nested too deeply"),
    "no JSON": ('{"text" "a", "n": [1, {"m": "]"}]}', "not JSON: Expecting ':' delimiter"),
    "a text that goes on": ('{"text":\n"a\tb"}', "not JSON: Invalid control character in line 3"),
    "bytes that are not UTF-8": (b'{"text": "\xff"}', "not UTF-8"),
    "a text of another type": ('{"text": 5}', "`text` is not text: `5`"),
}


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode()


def converted_source(files, base, *names, **fields):
    source = files.source(*names, **fields)
    for path in resolve_files(source, base=base):
        convert(path, base=base)
    return source


def read_all(source, base):
    """Return the documents and the notes of a pass over the whole source."""
    notes = []
    documents = list(single_pass(source, "train", base=base, notify=notes.append))
    documents += single_pass(source, "validation", base=base)
    return sorted(documents), notes


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("form", ["array", "lines"])
def test_bad_json_value_is_skipped_and_named_again_by_each_pass_over_the_copy(files, base, kind, form):
    bad, problem = PROBLEMS[kind]
    values = [b'{"text": "one"}', as_bytes(bad), b'{"text": "two"}']
    content = b"[" + b",\n".join(values) + b"]" if form == "array" else b"\n".join(values)
    path = files.text("a.json", content)
    source = converted_source(files, base, "a.json", validation_hash_frac=0.5)
    documents, notes = read_all(source, base)
    assert documents == ["one", "two"]
    place = f"{path}:2 element 2: " if form == "array" else f"{path}:2: "
    assert len(notes) == 1 and f": a bad row was left out: {place}{problem}" in notes[0]
    assert read_all(source, base) == (documents, notes)


@pytest.mark.parametrize("depth", [100, 300, 490, 510, 900, 985, 5000])
def test_deep_values_are_kept_beside_the_text_or_make_a_bad_row(files, base, depth):
    """Arrow has no file format for such values, and at some depth Python cannot read them."""
    deep = "[" * depth + "]" * depth
    rows = [f'{{"text": "one", "n": {deep}}}', '{"text": "two", "n": 1}', '{"text": "three"}']
    files.text("a.json", f'[{",".join(rows)}, {{"text": {deep}}}, {deep}]')
    documents, notes = read_all(converted_source(files, base, "a.json", validation_hash_frac=0.5), base)
    assert documents == (["one", "three", "two"] if depth < 500 else ["three", "two"])
    bad = [note.split("element ")[1][0] for note in notes if "element " in note]
    assert bad == (["4", "5"] if depth < 500 else ["1", "4", "5"])


def test_bad_elements_of_a_table_in_an_object_have_their_number(files, base):
    rows = f'{{"text": "one"}}, 7, {{"text": "two", "n": {DIGITS}}}, {{"text": "three"}}'
    path = files.text("a.json", f'{{"version": 1, "data": [{rows}]}}')
    documents, notes = read_all(converted_source(files, base, "a.json", validation_hash_frac=0.5), base)
    assert documents == ["one", "three"]
    assert [note.split("left out: ")[1] for note in notes] == [
        f"{path} `data` element 2: expected an object, a text or a list of messages, found `7`",
        f"{path} `data` element 3: holds a number of more than 4,300 digits; store it as text",
    ]


def test_json_values_that_continue_in_the_next_block_are_not_bad(files, base, monkeypatch):
    """Blocks end at every place of the values and of the bad one, which has brackets in a text."""
    rows = [json.dumps({"text": f"row {i}", "n": [{"a": [1.5, "]"]}]}, indent=i % 3) for i in range(40)]
    for name, content in (
        ("a.json", "[" + ",".join([*rows, '{"text" "]}"}', *rows]) + "]"),
        ("b.json", "\n".join(rows)),
    ):
        files.text(name, content)
    for size in (1, 2, 3, 7, 19):
        monkeypatch.setattr("nanochat.data.ingest.json_reader._READ_CHARS", size)
        source = converted_source(files, base / str(size), "a.json", "b.json")
        documents, notes = read_all(source, base / str(size))
        assert documents == sorted([f"row {i}" for i in range(40)] * 3)
        assert len(notes) == 1 and "element 41: not JSON" in notes[0]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("c,d,e", "3: 3 values, but the header has 2; quote values that contain `,`"),
        ('"c" d,e', "3: text after the closing quote of a value; write each quote inside a value twice"),
        ('"c,d', "3: a quote is never closed"),
        (b"\xff,d", "3: not UTF-8"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_bad_csv_row_is_skipped_and_named(files, base, suffix, bad, problem):
    content = b'text,id\n"o\nne",1\n'.replace(b"\n", b" ", 0)[:8] + b"one,1\n" + as_bytes(bad) + b"\ntwo,2\nthree\n"
    path = files.text(f"a.{suffix}", gzip.compress(content) if suffix == "csv.gz" else content)
    documents, notes = read_all(converted_source(files, base, path.name), base)
    assert documents == ["one", "three", "two"]
    assert len(notes) == 1 and f"{path}:{problem}" in notes[0]


def test_all_lines_of_a_broken_csv_row_are_bad(files, base):
    path = files.text("a.csv", 'text,id\n"one\ntwo" three,1\nfour,2\n"five\nsix",3\nseven,8,9\n')
    documents, notes = read_all(converted_source(files, base, "a.csv"), base)
    assert documents == ["five\nsix", "four"]
    assert [note.split(f"{path}:")[1].split(": ")[0] for note in notes] == ["2", "3", "7"]


def test_bad_sample_of_a_tar_is_skipped_and_named(files, base):
    path = files.folder / "a.tar"
    members = {"a.txt": b"one", "b.txt": b"two", "b.json": b"[1]", "c.txt": b"\xff", "d.json": b'{"text": "four"}'}
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    documents, notes = read_all(converted_source(files, base, "a.tar"), base)
    assert documents == ["four", "one"]
    assert [note.split("left out: ")[1] for note in notes] == [
        f"{path}: b: b.json: expected an object, found list",
        f"{path}: c: c.txt: not UTF-8 at byte 1",
    ]


def test_rows_of_an_arrow_file_are_named_by_their_number(files, base, monkeypatch):
    monkeypatch.setattr("nanochat.data.ingest.convert.TABLE_ROWS", 2)
    path = files.folder / "a.arrow"
    table = pa.table({"text": ["one", "two", "three", None, "five"]})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    documents, notes = read_all(converted_source(files, base, "a.arrow"), base)
    assert documents == ["five", "one", "three", "two"]
    assert len(notes) == 1 and notes[0].endswith(f"rows without text are left out; the first is {path} row 4")


FORMS = {
    "jsonl": lambda texts: "".join(json.dumps({"text": text}) + "\n" if text else "7\n" for text in texts),
    "json": lambda texts: json.dumps([{"text": text} if text else 7 for text in texts], indent=0),
    "csv": lambda texts: "text\n" + "".join(f"{text}\n" if text else "a,b\n" for text in texts),
}


@pytest.mark.parametrize("form", FORMS)
def test_limit_for_bad_rows_is_the_same_for_converted_files(files, base, form):
    """Ten bad rows are allowed, and more if they are at most 1 %."""
    texts = [f"text {i}" for i in range(400)]
    for bad, rows, is_allowed in ((10, 100, True), (11, 400, False), (11, 1100, True)):
        name = f"{bad}-{rows}.{form}"
        path = files.text(name, FORMS[form]([None] * bad + (texts * 3)[: rows - bad]))
        source = files.source(name)
        if form != "jsonl":
            convert(path, base=base)
        if is_allowed:
            check_documents(source, ("train", "validation"), base=base)
            continue
        with pytest.raises(PreflightError, match="11 bad rows, but `max_bad_rows` allows 10") as caught:
            check_documents(source, ("train",), base=base)
        assert len(re.findall(re.escape(str(path)) + ":[0-9]+", str(caught.value))) == 3
        assert str(base) not in str(caught.value)


def test_each_row_of_a_file_of_bad_rows_is_counted(files, base):
    path = files.text("a.json", "[" + ",\n".join(["7"] * 11) + "]")
    files.text("b.json", '[{"text": "one"}, {"text": "two"}]')
    source = converted_source(files, base, "a.json", "b.json")
    with pytest.raises(PreflightError, match="11 bad rows, but `max_bad_rows` allows 10") as caught:
        check_documents(source, ("train",), base=base)
    assert f"{path}:1 element 1: expected an object" in str(caught.value)


def test_stream_continues_after_a_bad_row_without_counting_it_again(files, base):
    rows = [{"text": f"{i}"} for i in range(9)]
    files.text("a.json", json.dumps([*rows[:5], 7, *rows[5:]]))
    source = converted_source(files, base, "a.json", validation_hash_frac=1e-9)
    notes = []
    stream = DocumentStream(source, "train", base=base, notify=notes.append)
    texts = [next(stream) for _ in range(8)]  # one of nine is held out
    for stop in range(1, 8):
        resumed = DocumentStream(source, "train", base=base)
        for _ in range(stop):
            next(resumed)
        again = resumed.reopened(resumed.position())
        assert [next(again) for _ in range(8 - stop)] == texts[stop:]
        assert again.position()["cursor"][2] == stream.position()["cursor"][2] == len(notes) == 1


def test_bad_rows_of_chats_are_named_by_file_and_line(files, base):
    good = {"question": "q", "answer": "a"}
    path = files.text("a.json", json.dumps([good, 7, {"question": "q"}, good], indent=1))
    chats = read_conversations(converted_source(files, base, "a.json"), "train", base=base)
    assert len(chats) == 2
    assert [reason.split(": ")[0] for reason in chats.refused] == [f"{path}:6 element 2", f"{path}:7 element 3"]
    assert chats.refused[0].endswith("found `7`") and "an empty answer" not in chats.refused[0]


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("test.csv", 'question,answer\n"two\nlines",#### 1\nq,none\n', ":4: gsm8k: a row must have"),
        ("test.json", '[{"question": "q", "answer": "#### 1"},\n7]', ":2 element 2: expected an object"),
        ("test.json", '[{"question": "q", "answer": "#### 1"},\n{}]', ":2 element 2: gsm8k: a row must have"),
    ],
)
def test_bad_row_of_a_task_is_named_by_file_and_line(files, base, name, content, place):
    path = files.text(name, content)
    source = converted_source(files, base, name)
    with pytest.raises(PreflightError) as caught:
        check_rows(source, "test", parse_word_problem, base=base)
    assert f"{path}{place}" in str(caught.value) and str(base) not in str(caught.value)


def test_damaged_copy_is_named_with_the_file_it_was_made_from(files, base):
    path = files.text("a.json", json.dumps([{"text": f"{i}" * 50} for i in range(2000)]))
    source = converted_source(files, base, "a.json")
    (part,) = base.glob("ingest/*/*.parquet")
    stream = DocumentStream(source, "train", base=base)
    part.write_bytes(part.read_bytes()[:4] + bytes(2000) + part.read_bytes()[2004:])
    with pytest.raises(StageError) as caught:
        next(stream)
    assert str(caught.value).startswith(f"{path}: its converted copy {part} is damaged")
