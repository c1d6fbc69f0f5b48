"""Tests that files are converted with exactly the rows they hold, once, and completely or not at all."""

from __future__ import annotations

import bz2
import csv
import errno
import gzip
import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from functools import partial

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.files.bad_rows import RowProblems
from nanochat.data.files.content_checks import check_file
from nanochat.data.files.cursors import START
from nanochat.data.files.formats.json_lines import HALF_PAIR
from nanochat.data.files.readers import read_rows, read_texts, read_values
from nanochat.data.ingest import convert as conversion
from nanochat.data.ingest import json_reader
from nanochat.data.ingest.convert import convert, read_tables
from nanochat.data.ingest.json_rows import json_rows
from nanochat.data.ingest.store import read_parts, readable_files, unconverted_files
from nanochat.errors import PreflightError, StageError

ROWS = [
    {"text": 'two\r\nlines, "quoted"\n', "id": "007"},
    {"text": "NA", "id": "1.0"},
    {"text": "2024-01-01", "id": ""},
    {"text": "\u00fcber \u2028 \U0001f600", "id": "nan"},
]


def read_copy(path, base):
    return [row for part in readable_files([path], base=base) for _, row in read_rows(part)]


def converted(path, base, **options):
    convert(path, base=base, **options)
    return read_copy(path, base)


def write_csv(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "arrow", "feather"])
def test_conversion_keeps_every_cell(tmp_path, suffix):
    """No text becomes a number, a date or a null, and nothing in the file's path means anything."""
    path = tmp_path / "s3::x" / f"a[1]*::b.{suffix}"
    path.parent.mkdir()
    match suffix:
        case "json":
            path.write_text(json.dumps(ROWS))
        case "csv" | "tsv":
            write_csv(path, ROWS, "," if suffix == "csv" else "\t")
        case "arrow":
            table = pa.Table.from_pylist(ROWS)
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
        case _:
            pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(path))
    assert converted(path, tmp_path / "zip::base") == ROWS


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json", "arrow"])
def test_file_whose_name_is_not_utf8_is_read(tmp_path, suffix):
    path = tmp_path / os.fsdecode(b"caf\xe9." + suffix.encode())
    plain = tmp_path / f"plain.{suffix}"
    match suffix:
        case "parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), plain)
        case "csv":
            write_csv(plain, ROWS)
        case "json":
            plain.write_text(json.dumps(ROWS))
        case _:
            pyarrow.feather.write_feather(pa.Table.from_pylist(ROWS), str(plain))
    plain.rename(path)
    check_file(path)
    for one in unconverted_files([path], base=tmp_path / "base"):
        convert(one, base=tmp_path / "base")
    assert read_copy(path, tmp_path / "base") == ROWS


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_compressed_file_is_converted_like_the_plain_one(tmp_path, suffix):
    content = write_csv(tmp_path / "a.csv", ROWS).read_bytes()
    path = tmp_path / f"a.csv.{suffix}"
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": partial(lzma.compress, preset=0)}
    path.write_bytes(compress[suffix](content) if suffix in compress else pa.compress(content, "zstd", asbytes=True))
    assert converted(path, tmp_path / "base") == ROWS


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('["a", "b"]', [{"text": "a"}, {"text": "b"}]),
        ('{"text": "a"}\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
        ('\ufeff {"version": "1", "data": [{"text": "a"}, {"text": "b"}]}', [{"text": "a"}, {"text": "b"}]),
        ('{"messages": [{"role": "user"}]}', [{"messages": [{"role": "user"}]}]),
        ('[{"text": "a"}, {"text": "b", "n": 1}]', [{"text": "a", "n": None}, {"text": "b", "n": 1}]),
        ('[{"m": "a", "o": {}}, {"m": ["b"]}]', [{"m": "a", "o": {}}, {"m": ["b"], "o": None}]),
        (
            '{"text": "own", "parts": [{"text": "a"}]}',
            [{"text": "own", "parts": [{"text": "a"}]}],
        ),
        ('[[{"role": "user"}], {"messages": [{"role": "a"}]}]', [{"messages": [{"role": r}]} for r in ("user", "a")]),
        ('{"conversations": [[{"from": "human"}]], "v": 1}', [{"messages": [{"from": "human"}]}]),
        ("[]", []),
    ],
)
def test_json_forms(tmp_path, text, rows):
    """Values of a key keep their types, even if these differ."""
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    assert converted(path, tmp_path / "base") == rows


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_json_with_a_mark_of_its_encoding_is_read(tmp_path, encoding):
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    (tmp_path / "a.json").write_bytes((mark + json.dumps(ROWS, ensure_ascii=False)).encode(encoding))
    assert converted(tmp_path / "a.json", tmp_path / "base") == ROWS


def test_value_that_is_not_text_is_a_bad_row_and_changes_no_other_text(tmp_path):
    path, base = tmp_path / "a.json", tmp_path / "base"
    path.write_text('[{"text": "a \\"b\\""}, {"text": 5}, {"text": {}}, {"text": "c"}]')
    convert(path, base=base)
    (part,) = readable_files([path], base=base)
    problems = RowProblems()
    texts = [text for text, _ in read_texts(part, "text", START, max_chars=None, problems=problems)]
    assert texts == ['a "b"', "c"]
    assert problems.bad == 2
    assert problems.examples[0] == f"{path}:1 element 2: `text` is not text: `5`"


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_column_of_nulls_is_rows_without_text(tmp_path, suffix):
    path, problems = tmp_path / f"a.{suffix}", RowProblems()
    if suffix == "json":
        path.write_text('[{"text": null}, {"text": null}]')
        convert(path, base=tmp_path / "base")
    else:
        pq.write_table(pa.table({"text": pa.nulls(2)}), path)
    (file,) = readable_files([path], base=tmp_path / "base")
    assert list(read_texts(file, "text", START, max_chars=None, problems=problems)) == []
    assert (problems.bad, problems.empty) == (0, 2)


json_values_of_any_type = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=30)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), json_values_of_any_type, max_size=3), max_size=6),
    indent=st.sampled_from([None, 2]),
    read_chars=st.integers(1, 9),
)
def test_json_rows_are_those_of_the_json_module(tmp_path_factory, rows, indent, read_chars):
    """The file is read a few characters at a time, so that values are cut at every place."""
    path = tmp_path_factory.mktemp("rows") / "a.json"
    path.write_text(json.dumps(rows, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_reader, "_READ_CHARS", read_chars)
        assert [row.values for row in json_rows(path)] == rows


def test_tar_of_webdataset_gives_texts_and_keys_without_media(tmp_path):
    path = write_tar(
        tmp_path / "shard.tar",
        {
            "d/0.txt": b"one\r\n",
            "d/0.json": b'{"lang": "en"}',
            "d/0.jpg": b"\xff\xd8",
            "d/0.xml": b"<annotation/>",
            "../1.txt": b"two",
            "/etc/2.json": b'{"text": "three"}',
        },
    )
    rows = [("one\r\n", "en"), ("two", None), ("three", None)]
    assert [(row["text"], row["lang"]) for row in converted(path, tmp_path / "base")] == rows
    assert not (tmp_path.parent / "1.txt").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test/b.txt", "`test/b.txt` belongs to the split `test`"),
        ("x/rows.jsonl", "`x/rows.jsonl` is a data file"),
        ("x/b.md", "x/b.md: is a document"),
        ("x/b.xml", "x/b.xml: is a document"),
    ],
)
def test_tar_with_other_files_than_samples_is_refused(tmp_path, name, message):
    path = write_tar(tmp_path / "shard.tar", {"a/a.txt": b"one", ".hidden.jsonl": b"x", name: b"two"})
    with pytest.raises(PreflightError, match=f"{message}.*unpack"):
        convert(path, base=tmp_path / "base")


def test_quotes_in_tsv_that_enclose_no_field_are_characters(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('text\tn\n"hello\t1\n"you\t2\n')
    rows = [{"text": '"hello', "n": "1"}, {"text": '"you', "n": "2"}]
    assert converted(path, tmp_path / "base") == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,text\na,b\n", r"a\.csv:1: the header names a column twice: 'text'"),
        ("a.csv", b"t\xff\na\n", r"a\.csv:1: the header is not UTF-8: save the file as UTF-8"),
        ("a.csv", b'"a"b\nc\n', r"a\.csv:1: the header cannot be read: text after the closing quote of a value"),
        ("a.json", b'[{"text": "a"},\n{"text": "b"', r"a\.json:2: not JSON: Expecting .*; is the file cut off\?"),
        ("a.json", b'{"data": [\n{"text": "a"},\n{"text" "b"},\n{"text": "c"}]}', r"a\.json:3: not JSON: Expecting"),
        ("a.json", b"<html>\n</html>", r"a\.json:1: not JSON: Expecting value"),
        ("a.json", b"[" * 100_000, r"a\.json:1: JSON nested too deeply; is the file cut off\?"),
        ("a.json", b'[{"text": "a"}]\n]', r"a\.json:2: expected the end of the file"),
        ("a.json", b'{"system": "s", "rows": [{"text": "a"}]}', r"a\.json:1: `system` beside the list of rows"),
        ("a.feather", b"ARROW1\0\0cut", r"a\.feather: damaged or cut off, not readable as feather"),
        ("a.tar", b"no tar", r"a\.tar: damaged or cut off, not readable as tar"),
        (
            "a.csv.gz",
            gzip.compress(b"text\n" + bytes(range(256)) * 9, mtime=0)[:-40],
            r"a\.csv\.gz: damaged or cut off",
        ),
        ("a.json.gz", gzip.compress(b'[{"text": \n"a"} 3', mtime=0), r"a\.json\.gz:2: expected `,`"),
    ],
)
def test_damaged_file_is_refused_with_its_place_and_leaves_no_copy(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises((PreflightError, StageError), match=message):
        convert(path, base=tmp_path / "base")
    assert names(tmp_path / "base" / "ingest") == []


def test_arrow_file_that_asks_for_more_than_any_memory_is_refused(tmp_path, monkeypatch):
    """Arrow raises this error if the size of a buffer in the file is damaged."""

    def read_tables(path, file_format, *, first_row):
        raise pa.lib.ArrowMemoryError("malloc of size 288230376151715776 failed")

    monkeypatch.setattr(conversion, "read_tables", read_tables)
    path = tmp_path / "a.feather"
    path.write_bytes(b"ARROW1")
    with pytest.raises(
        PreflightError, match=r"a\.feather: damaged or cut off, not readable as feather \(malloc of size"
    ):
        convert(path, base=tmp_path / "base")


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_ALWAYS_ALLOWED_BYTES", 1 << 20)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"text\n" + b"0" * (4 << 20)))
    with pytest.raises(PreflightError, match=r"a\.csv\.gz: has more than 500 times its size"):
        convert(path, base=tmp_path / "base")
    assert names(tmp_path / "base" / "ingest") == []


def test_full_disk_is_reported_and_leaves_no_copy(tmp_path, monkeypatch):
    def write_table(table, path, **options):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28]")  # as Arrow says it

    monkeypatch.setattr(pq, "write_table", write_table)
    path = tmp_path / "a.json"
    path.write_text('["a"]')
    with pytest.raises(PreflightError, match=r"a\.json: cannot be converted under .*ingest: No space left on device"):
        convert(path, base=tmp_path / "base")
    assert names(tmp_path / "base" / "ingest") == []


KILLED_AFTER_TWO_PARTS = """
import os, sys
from pathlib import Path
from nanochat.data.ingest import convert, row_tables
row_tables.TABLE_ROWS = 10
calls = iter(range(2))
convert.convert(
    Path(sys.argv[1]), base=Path(sys.argv[2]), part_bytes=1,
    on_progress=lambda done, size: next(calls) and os.kill(os.getpid(), 9),
)
"""


def test_killed_conversion_does_not_count_and_is_resumed(tmp_path, monkeypatch):
    """The finished parts are kept, and the copy equals that of a conversion that was never killed."""
    path, base = tmp_path / "a.json", tmp_path / "base"
    path.write_text(json.dumps([{"text": f"row {i}"} for i in range(45)]))
    done = subprocess.run([sys.executable, "-c", KILLED_AFTER_TWO_PARTS, path, base], check=False)
    assert done.returncode == -signal.SIGKILL
    assert unconverted_files([path], base=base) == [path]
    with pytest.raises(PreflightError, match="is not converted yet"):
        readable_files([path], base=base)
    (partial,) = (base / "ingest").iterdir()
    first = (partial / "a.json-00000.parquet").stat()
    monkeypatch.setattr("nanochat.data.ingest.row_tables.TABLE_ROWS", 10)
    folder = convert(path, base=base, part_bytes=1)
    assert names(base / "ingest") == [folder.name]
    kept = (folder / "a.json-00000.parquet").stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert read_parts(folder) == read_parts(convert(path, base=tmp_path / "other", part_bytes=1))
    assert [row["text"] for row in read_copy(path, base)] == [f"row {i}" for i in range(45)]


def test_damaged_part_of_a_copy_is_converted_again(tmp_path):
    path, base = tmp_path / "a.json", tmp_path / "base"
    path.write_text('["a", "b"]')
    convert(path, base=base)
    (part,) = readable_files([path], base=base)
    content = bytearray(part.path.read_bytes())
    content[20] ^= 1
    part.path.write_bytes(content)
    assert unconverted_files([path], base=base) == [path]
    assert [row["text"] for row in converted(path, base)] == ["a", "b"]


def test_list_of_an_unfinished_copy_is_not_trusted_if_it_is_damaged_or_of_another_copy(tmp_path, monkeypatch):
    """A wrong number of rows would leave out rows, or convert some twice."""
    monkeypatch.setattr("nanochat.data.ingest.row_tables.TABLE_ROWS", 10)
    for name, count in (("a.json", 45), ("b.json", 45)):
        (tmp_path / name).write_text(json.dumps([{"text": f"{name} row {i}"} for i in range(count)]))
    path, base = tmp_path / "a.json", tmp_path / "base"
    whole, other = (convert(tmp_path / name, base=base, part_bytes=1) for name in ("a.json", "b.json"))
    for damage in (
        lambda listed: listed.write_text(listed.read_text().replace('"rows": 10', '"rows": 20')),
        lambda listed: shutil.copy(other / "parts.json", listed),
    ):
        partial = whole.rename(whole.with_name(f"{whole.name}.partial"))
        damage(partial / "parts.json")
        assert read_parts(partial) is None
        assert convert(path, base=base, part_bytes=1) == whole
        assert [row["text"] for row in read_copy(path, base)] == [f"a.json row {i}" for i in range(45)]


def test_copy_is_found_by_content_whatever_the_file_is_called(tmp_path):
    path, base = tmp_path / "a.json", tmp_path / "base"
    path.write_text('["a"]')
    convert(path, base=base)
    moved = path.rename(tmp_path / "b.json")
    assert read_copy(moved, base) == [{"text": "a"}]
    moved.write_text('["c"]')
    assert unconverted_files([moved], base=base) == [moved]


def test_file_that_changes_during_the_conversion_is_refused(tmp_path):
    path, base = tmp_path / "a.json", tmp_path / "base"
    path.write_text('["a"]')
    with pytest.raises(PreflightError, match="was changed while it was converted"):
        convert(path, base=base, on_progress=lambda done, size: path.write_text('["changed"]'))
    assert names(base / "ingest") == []


def test_column_that_changes_its_type_starts_a_new_part(tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat.data.ingest.row_tables.TABLE_ROWS", 2)
    path = tmp_path / "a.json"
    rows = [{"n": 1}, {"n": None}, {"n": None}, {"n": None}, {"n": "x"}]
    path.write_text(json.dumps(rows))
    assert converted(path, tmp_path / "base") == rows
    assert len(read_parts(next((tmp_path / "base" / "ingest").iterdir()))) == 2


def test_objects_whose_keys_are_data_are_kept_as_they_are(tmp_path):
    """As a column of parquet, an object would have the keys of all rows, and a nested object those of all others."""
    path = tmp_path / "a.json"
    rows = [{"by_id": {f"{row}-{n}": {"n": n} for n in range(3)}, "list": [{f"{row}": "\u00e9"}]} for row in range(300)]
    path.write_text(json.dumps(rows))
    assert converted(path, tmp_path / "base") == rows


def test_half_of_a_surrogate_pair_is_a_bad_row_in_any_column(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"a": {"b": "\\ud83d"}}, {"a": "text"}, {"a": {"b": "c"}}]')
    convert(path, base=tmp_path / "base")
    rows = [row for part in readable_files([path], base=tmp_path / "base") for row in read_values(part)]
    assert [row.value for row in rows[1:]] == [{"a": "text"}, {"a": {"b": "c"}}]
    assert rows[0].problem == HALF_PAIR


def test_long_rows_are_converted_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat.data.ingest.row_tables._TABLE_CHARS", 100)
    path = tmp_path / "a.json"
    rows = [{"text": letter * length} for letter, length in (("a", 20), ("b", 20), ("c", 90), ("d", 300), ("e", 1))]
    path.write_text(json.dumps(rows))
    assert [table["text"].to_pylist() for table in read_tables(path, ".json", first_row=1)] == [
        [row["text"] for row in part] for part in (rows[1:3], rows[3:4], rows[4:])
    ]


def test_single_conversation_of_claude_is_one_row_and_mails_are_a_table(tmp_path):
    path = tmp_path / "a.json"
    row = {"uuid": "1", "name": "x", "chat_messages": [{"sender": "human", "text": "q"}]}
    path.write_text(json.dumps(row))
    assert converted(path, tmp_path / "base") == [row]
    mails = [{"sender": "ann@example.org", "text": "q"}, {"sender": "bob@example.org", "text": "a"}]
    path.write_text(json.dumps({"mails": mails}))
    assert converted(path, tmp_path / "other") == mails
