"""Tests that text with a mark of its encoding, UTF-8 or UTF-16, is read as the same text without one."""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import lzma

import pyarrow as pa
import pytest

from nanochat.data.documents import DocumentStream, single_pass
from nanochat.data.files.bad_rows import RowProblems
from nanochat.data.files.content_checks import document_lines
from nanochat.data.files.cursors import START
from nanochat.data.files.file_sizes import estimate_rows
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.files.readers import read_texts
from nanochat.data.sources.source_contents import digest
from nanochat.errors import PreflightError

LINES = [f"line {i}: caf\u00e9 \U0001f600 \u2028 {'x' * i}\n" for i in range(50)]
ENCODINGS = {
    "utf-8-sig": lambda text: text.encode("utf-8-sig"),
    "utf-16-le": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "utf-16-be": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}


def content_of(suffix):
    if suffix == "jsonl":
        return "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in LINES)
    return "".join(LINES)


@pytest.mark.parametrize("suffix", ["txt", "jsonl"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("compression", ["", ".gz"])
def test_marked_text_is_read_from_every_position_as_plain_text_is(files, suffix, encoding, compression):
    content = ENCODINGS[encoding](content_of(suffix))
    path = files.text(f"a.{suffix}{compression}", gzip.compress(content) if compression else content)
    plain = files.text(f"plain.{suffix}", content_of(suffix))
    expected = [text for text, _ in read_texts(ReadableFile(plain), "text", START, max_chars=200)]
    read = list(read_texts(ReadableFile(path), "text", START, max_chars=200))
    assert [text for text, _ in read] == expected and "".join(expected) == "".join(LINES)
    for number in range(0, len(read), 7):
        rest = read_texts(ReadableFile(path), "text", read[number][1], max_chars=200)
        assert [text for text, _ in rest] == expected[number + 1 :]
    assert estimate_rows([ReadableFile(path)]) == len(LINES)


COMPRESSIONS = {
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_lines_of_a_compressed_file_are_counted(files, suffix):
    path = files.text(f"a.txt.{suffix}", COMPRESSIONS[suffix]("".join(LINES).encode()))
    assert estimate_rows([ReadableFile(path)]) == len(LINES)


def test_checkpoint_in_utf16_text_that_changed_is_refused(files, base):
    path = files.text("a.txt", ENCODINGS["utf-16-le"](content_of("txt")))
    stream = DocumentStream(files.source("a.txt", max_document_chars=100), "train", base=base)
    next(stream)
    path.write_bytes(ENCODINGS["utf-16-le"](content_of("txt")[7:]))
    with pytest.raises(PreflightError, match=r"a\.txt: changed before line"):
        next(stream.reopened(stream.position()))


@pytest.mark.parametrize("bad", [b"\x00\xd8x\x00", b"\x00\xdc"], ids=["half of a surrogate pair", "the other half"])
def test_broken_utf16_makes_its_line_bad(files, bad):
    content = "one\n".encode("utf-16") + bad + "\nthree\n".encode("utf-16-le") + b"x"
    problems = RowProblems()
    path = files.text("a.txt", content)
    texts = [text for text, _ in read_texts(ReadableFile(path), "text", START, max_chars=5, problems=problems)]
    assert texts == ["one\n", "three\n", ""]  # the last one carries the cursor that counts the bad line before it
    assert problems.bad == 2
    (example,) = problems.examples
    assert example.startswith(f"{path}:2: not UTF-8 at byte 1 of the line")


@pytest.mark.parametrize(
    ("good", "bad", "is_foreign"),
    [(0, 1, True), (8, 2, True), (9, 1, False), (18, 2, False), (800, 9, False), (800, 11, True), (1100, 11, False)],
)
def test_text_in_another_encoding_is_one_bad_file_and_a_damaged_text_loses_lines(files, good, bad, is_foreign):
    """Many lines are more than a tenth of them, or more than ten that are also more than 1 %."""
    path = files.text("a.txt", b"plain\n" * good + b"caf\xe9\n" * bad)
    problems = RowProblems()
    texts = [text for text, _ in read_texts(ReadableFile(path), "text", START, max_chars=None, problems=problems)]
    assert "".join(texts) == ("" if is_foreign else "plain\n" * good)
    assert problems.bad == (1 if is_foreign else bad)
    (example,) = problems.examples
    assert example.startswith(f"{path}:{good + 1}: not UTF-8 at byte 4 of the line (0xE9): save the file as UTF-8")
    assert example.endswith(f"; {bad} line{'s are' if bad > 1 else ' is'} like that") == is_foreign


def test_text_with_other_lines_in_utf8_is_damaged_and_not_in_another_encoding(files):
    path = files.text("a.txt", "café\n".encode() + b"caf\xe9\n" * 50)
    problems = RowProblems()
    texts = [text for text, _ in read_texts(ReadableFile(path), "text", START, max_chars=None, problems=problems)]
    assert texts == ["café\n"] and problems.bad == 50 and len(problems.examples) == 1


def test_bad_rows_are_shown_beside_bad_files_and_once_for_the_encoding_of_a_file(files, base):
    for i in range(4):
        files.text(f"a{i}.txt", b"caf\xe9\n")
    files.text(
        "b.jsonl", b'{"text": "caf\xe9"}\n' * 2 + b'{"text": 5, "x": "' + b"y" * 9000 + b'"}\n[]\n{"text": "good"}'
    )
    files.text("c.txt", "fine")
    notes = []
    source = files.source("*", validation_hash_frac=1e-9)
    assert len([text for split in ("train", "validation") for text in single_pass(source, split, base=base)]) == 2
    list(single_pass(source, "train", base=base, notify=notes.append))
    shown = [note.split(": ", 2)[2].rsplit("/", 1)[1] for note in notes[:-1]]
    assert [text.split(": ")[0] for text in shown] == [
        *(f"a{i}.txt:1" for i in range(4)),
        "b.jsonl:1",
        "b.jsonl:3",
        "b.jsonl:4",
    ]
    assert notes[-1].endswith(": 8 bad rows were left out")


def test_digest_changes_when_a_text_in_another_encoding_is_converted(files, base):
    """Its lines in ASCII do not count alone, because they are not read."""
    digests = set()
    for content in (
        ("plain\n" * 3 + "café\n" * 3).encode("latin-1"),
        b"plain\n" * 3,
        ("plain\n" * 3 + "café\n").encode(),
    ):
        files.text("a.txt", content)
        digests.add(digest(files.source("a.txt"), base=base, lines=document_lines("text")))
    assert len(digests) == 3


def test_documents_of_a_folder_of_many_encodings_are_its_texts(files, base):
    for name, encode in ENCODINGS.items():
        files.text(f"{name}.txt", encode(f"text in {name}\n"))
    source = files.source("*.txt", validation_hash_frac=1e-9)
    read = [*single_pass(source, "train", base=base), *single_pass(source, "validation", base=base)]
    assert sorted(read) == sorted(f"text in {name}\n" for name in ENCODINGS)
