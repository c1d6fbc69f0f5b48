"""Kinds of files: which ones of a folder are read, compressed files, and the text of pages."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

from nanochat.data.documents import single_pass
from nanochat.data.files.cursors import START
from nanochat.data.files.file_kinds import kind_of, lower_suffix, stem_of
from nanochat.data.files.formats import streams
from nanochat.data.files.formats.html_text import html_text
from nanochat.data.files.formats.readable_file import ReadableFile
from nanochat.data.files.readers import read_texts, read_values
from nanochat.data.files.selection.file_choice import NO_ROWS, OTHER_GROUP
from nanochat.data.ingest.convert import convert
from nanochat.data.source_splits import row_files
from nanochat.data.sources.source_contents import digest, list_files, resolve_files
from nanochat.data.task_rows import iter_rows
from nanochat.errors import StageError


@pytest.mark.parametrize(
    ("name", "stem", "reader", "compression"),
    [
        ("a.parquet", "a", "parquet", None),
        ("train-00000-of-00002.JSONL.GZ", "train-00000-of-00002", "json lines", "gzip"),
        ("v1.2.ndjson.zst", "v1.2", "json lines", "zstd"),
        ("notes.md.xz", "notes", "text lines", "xz"),
        ("diary.org", "diary", "text lines", None),
        ("manual.adoc.gz", "manual", "text lines", "gzip"),
        ("page.htm", "page", "html", None),
        ("essay.Rmd", "essay", "text lines", None),
        ("main.py.bz2", "main", "text lines", "bz2"),
        ("a.csv.gz", "a", "converted", "gzip"),
    ],
)
def test_kind_of_reads_format_and_compression_from_the_suffix(name, stem, reader, compression):
    kind = kind_of(name)
    assert (stem_of(name), kind.reader, kind.compression) == (stem, reader, compression)
    assert lower_suffix(name) == name[: len(stem)] + name[len(stem) :].lower()


@pytest.mark.parametrize("name", ["a", ".txt", "a.gz", "a.pdf", "a.tar.gz.txt.zip", "a.parquet.gz", "README"])
def test_kind_of_other_files_is_unknown(name):
    assert kind_of(name) is None and stem_of(name) == name


@pytest.mark.parametrize(
    ("names", "used"),
    [
        (
            "a.parquet b.jsonl.gz c.txt notes.md d.csv e.json main.py README.md",
            "README.md a.parquet b.jsonl.gz c.txt d.csv main.py notes.md",
        ),
        ("a.txt b.md c.html d.py meta.csv package.json README.md", "README.md a.txt b.md c.html d.py"),
        ("a.jsonl meta.csv README.md", "a.jsonl"),
        ("README.md main.py meta.csv", "README.md main.py"),
        ("a.txt main.py README.md", "a.txt main.py"),
        ("guide.md x.arrow y.tar", "guide.md"),
        ("guide.md main.py main.h main.c package.json README.md", "README.md guide.md main.c main.h main.py"),
        ("data.csv more.tsv info.json README.md LICENSE.txt", "data.csv more.tsv"),
        ("rows.json README.md", "rows.json"),
        ("README.md LICENSE.md", "LICENSE.md README.md"),
        ("a.txt a.txt.gz a.md a.html b.html.xz b.html", "a.txt b.html"),
        ("train.jsonl train-1.jsonl.gz train.csv test.csv", "train-1.jsonl.gz train.jsonl"),
        ("train/a.txt train/b.md train/c.html", "train/a.txt train/b.md train/c.html"),
    ],
)
def test_folder_gives_its_texts_and_the_rows_that_have_the_column(files, base, names, used):
    """A table is left out if its header lacks the column; a file of rows that is damaged is not."""
    for name in names.split():
        files.text(f"data/{name}", "text" if name == "d.csv" else "content")
    choice = list_files(files.source("data"), base=base)
    assert [str(path.relative_to(files.folder / "data")) for path in choice.paths] == used.split()
    assert choice.found == len(names.split()) and all(reason for _, reason in choice.left_out)


def test_pattern_that_tells_the_suffix_reads_files_beside_those_of_other_kinds(files, base):
    for name in ("a.jsonl", "b.md", "README.md", "main.py"):
        files.text(f"data/{name}", "content")
    choice = list_files(files.source("data/*.md", "data/main.py", "data"), base=base)
    assert [path.name for path in choice.paths] == ["README.md", "a.jsonl", "b.md", "main.py"]


NOTES = {
    "note.md": "text of a note",
    "page.html": "<p>text of a page</p>",
    "row.jsonl": '{"text": "text of a row"}\n',
    "cell.csv": "number,text\n1,text of a cell\n",
    "chat.jsonl": '{"messages": [{"role": "user", "content": "q"}]}\n',
    "sum.tsv": "month\tsum\nMay\t3\n",
    "other.parquet": None,
}


def test_texts_of_a_folder_are_read_in_every_form_and_what_has_none_is_named(files, base):
    for name, content in NOTES.items():
        files.text(f"notes/{name}", content) if content else files.parquet(f"notes/{name}", ["x"], column="body")
    source = files.source("notes", validation_hash_frac=0.0)
    choice = list_files(source, base=base)
    assert sorted(path.name for path, reason in choice.missed) == ["chat.jsonl", "other.parquet", "sum.tsv"]
    assert {reason for _, reason in choice.missed} == {
        "without the key or column `text`, which holds the documents; `column` names another one"
    }
    for path in choice.paths:
        if path.suffix == ".csv":
            convert(path, base=base)
    read = [text for split in ("train", "validation") for text in single_pass(source, split, base=base)]
    assert sorted(text.strip() for text in read) == [f"text of a {name}" for name in ("cell", "note", "page", "row")]
    body = list_files(files.source("notes", column="body"), base=base)
    assert [path.name for path in body.paths] == ["note.md", "other.parquet", "page.html"]


def test_rows_of_a_folder_are_those_of_one_kind_and_notes_are_named(files, base):
    for name, content in NOTES.items():
        if content:
            files.text(f"notes/{name}", content)
    choice = row_files(files.source("notes"), "train", base=base)
    assert [path.name for path in choice.paths] == ["chat.jsonl", "row.jsonl"]
    assert {path.name: reason for path, reason in choice.missed} == {
        "note.md": NO_ROWS, "page.html": NO_ROWS, "cell.csv": OTHER_GROUP, "sum.tsv": OTHER_GROUP
    }  # fmt: skip
    for name in ("row.jsonl", "chat.jsonl"):
        (files.folder / "notes" / name).unlink()
    assert [path.name for path in row_files(files.source("notes"), "train", base=base).paths] == ["cell.csv", "sum.tsv"]


@pytest.mark.parametrize(
    ("read_as", "names"),
    [("text", "cell.csv note.md row.jsonl"), ("chats", "row.jsonl"), (None, "cell.csv note.md row.jsonl")],
)
def test_files_that_count_for_a_source_are_those_that_its_recipe_reads(files, base, read_as, names):
    for name in ("note.md", "row.jsonl", "cell.csv"):
        files.text(f"notes/{name}", NOTES[name])
    source = files.source("notes", read_as=read_as)
    assert [path.name for path in resolve_files(source, base=base)] == names.split()
    before = digest(source, base=base)
    files.text("notes/note.md", "another text")
    assert (digest(source, base=base) == before) == (read_as == "chats")


def test_rows_that_all_lack_the_column_are_not_left_out_by_their_headers(files, base):
    """The checks before a run name the columns that they have."""
    files.text("data/a.jsonl", '{"body": "x"}\n')
    files.text("data/b.csv", "body\nx\n")
    choice = list_files(files.source("data"), base=base)
    assert [path.name for path in choice.paths] == ["a.jsonl"]
    assert choice.left_out == ((files.folder / "data/b.csv", OTHER_GROUP),)


ROWS = [{"text": f"row {i} é", "number": i} for i in range(50)]


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz"])
def test_compressed_rows_equal_those_of_the_plain_file(files, base, suffix):
    path = files.compressed(f"rows.jsonl.{suffix}", "".join(json.dumps(row) + "\n" for row in ROWS))
    assert [row.value for row in read_values(ReadableFile(path))] == ROWS
    assert [row.values for row in iter_rows(files.source(f"rows.jsonl.{suffix}"), "train", base=base)] == ROWS


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("fault", ["cut off", "overwritten", "followed by something else"])
def test_damaged_compressed_file_is_reported_with_its_position(files, suffix, fault):
    if suffix == "xz" and fault == "followed by something else":
        pytest.skip("the library takes what follows the last stream for padding")
    lines = [f"line {i} {zlib.crc32(b'%d' % i)}\n" for i in range(20_000)]
    path = files.compressed(f"a.txt.{suffix}", "".join(lines))
    raw, middle = path.read_bytes(), path.stat().st_size * 2 // 3
    changed = {
        "cut off": raw[:middle],
        "overwritten": raw[:middle] + bytes(5000) + raw[middle + 5000 :],
        "followed by something else": raw + b"something",
    }
    path.write_bytes(changed[fault])
    texts = []
    with pytest.raises(
        StageError, match=rf"a\.txt\.{suffix}: damaged or cut off after byte [0-9,]+ of the dec"
    ) as error:
        for text, _ in read_texts(ReadableFile(path), "text", START, max_chars=1000):
            texts.append(text)
    position = int(str(error.value).split("after byte ")[1].split(" ")[0].replace(",", ""))
    assert len("".join(texts)) <= position
    if fault != "overwritten":  # only a checksum at the end may show it
        assert "".join(lines).startswith("".join(texts))


def test_compressed_file_that_expands_without_bounds_is_refused(files, monkeypatch):
    monkeypatch.setattr(streams, "_MAX_LINE_BYTES", 1 << 20)
    path = files.text("bomb.txt.gz", gzip.compress(b"x" * (1 << 22)))
    with pytest.raises(StageError, match=r"bomb\.txt\.gz: the line from byte 0 of .* has more than 1 MB"):
        list(read_texts(ReadableFile(path), "text", START, max_chars=None))
    monkeypatch.setattr(streams, "_MAX_EXPANSION", 100)
    path = files.text("lines.txt.gz", gzip.compress(b"again and again\n" * (1 << 17)))
    with pytest.raises(StageError, match=r"lines\.txt\.gz: decompresses to more than 100 times its size"):
        list(read_texts(ReadableFile(path), "text", START, max_chars=None))


PAGE = """<!DOCTYPE html><html><head><title>No</title><style>p {color: red}</style>
<script>if (a < b) { document.write("<p>no</p>"); }</script></head>
<body><h1>A  heading</h1>
<p>One <b>two</b>
 three &lt;four&gt; <br> caf&eacute;.<p>next
<div>a<div>b</div></div>
<ul><li>x</li><li>y <i>z</i></ul>
<table><tr><th>k</th><th>v</th></tr> <tr><td>1</td> <td>2</td></tr></table>
<pre>
def f():
    return <b>1</b>


x
</pre><noscript>no</noscript><!-- no --> end</body></html>"""
TEXT = """A heading

One two three <four>
café.

next
a
b

x
y z

k\tv
1\t2

def f():
    return 1


x

end
"""


def test_html_text_is_what_a_browser_shows():
    assert html_text(PAGE.encode()) == TEXT


@pytest.mark.parametrize("content", ["", "<p> </p>", "<script>unclosed <p>x", "<style>p {}</style>"])
def test_html_text_of_a_page_without_text_is_empty(content):
    assert html_text(content.encode()) == ""


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"<meta charset=latin1><p>caf\xe9", "café\n"),
        (b'<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">\xc4\xe0', "Да\n"),
        (b'<?xml version="1.0" encoding="ISO-8859-1"?><p>\x93q\x94', "“q”\n"),
        (b"\xef\xbb\xbf<p>\xc3\xa9", "é\n"),
        (b"\xff\xfe<\0p\0>\0\xe9\0", "é\n"),
        ("<meta charset=utf-16>\u00e9".encode(), "\u00e9\n"),
    ],
)
def test_html_text_honours_the_declared_encoding(content, text):
    assert html_text(content) == text


def test_pages_that_cannot_be_read_are_counted_as_bad_rows(files, base):
    files.text("a.html", b"<p>\xff")
    files.text("b.html", "<p>good</p>")
    files.text("c.html", '<meta charset="klingon">x')
    files.text("d.html", "<p>fine</p>")
    notes = []
    source = files.source("*.html", validation_hash_frac=0.0)
    read = list(single_pass(source, "train", base=base, notify=notes.append))
    read += list(single_pass(source, "validation", base=base))
    assert sorted(read) == ["fine\n", "good\n"]
    assert [note.split(": ", 1)[1].rsplit("/", 1)[1] for note in notes] == [
        "a.html: not utf-8 at byte 4",
        "c.html: its encoding `klingon` is unknown",
    ]


def test_zero_bytes_after_gzip_content_are_padding(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"a\nb\n") + gzip.compress(b"c\n") + bytes(600))
    assert list(streams.raw_lines(path, 2)) == [b"b\n", b"c\n"]


@pytest.mark.parametrize("change", ["cut", "junk", "flipped"])
def test_damaged_gzip_is_reported(tmp_path, change):
    path, content = tmp_path / "a.txt.gz", gzip.compress(b"".join(b"%d\n" % i for i in range(1000)))
    flipped = content[:40] + bytes(255 - byte for byte in content[40:80]) + content[80:]
    path.write_bytes({"cut": content[:-3], "junk": content + b"junk", "flipped": flipped}[change])
    with pytest.raises(StageError, match="damaged or cut off"):
        list(streams.raw_lines(path, 0))
