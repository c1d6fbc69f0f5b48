"""Tests that rows of text which say to belong to a held-out split are not trained on, whatever their format."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.documents import DocumentStream, single_pass
from nanochat.data.ingest.convert import convert
from nanochat.data.source_checks import check_documents
from nanochat.errors import PreflightError

ROWS = [
    {"text": "one", "split": "train"},
    {"text": "two", "split": "test"},
    {"text": "three", "split": ""},
    {"text": "four", "split": " Valid "},
    {"text": "five", "split": "dev"},
    {"text": "six", "split": "testing ground"},
]
TRAINED = ["one", "six", "three"]


def write(path, rows):
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".parquet":
            table = pa.Table.from_pylist(rows)
            pq.write_table(table.set_column(1, "split", table["split"].dictionary_encode()), path)
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    return path


@pytest.fixture(params=["jsonl", "parquet", "json", "csv"])
def write_rows(request, files, base):
    def write_one(name, rows=ROWS):
        path = write(files.folder / f"{name}.{request.param}", rows)
        if request.param in ("json", "csv"):
            convert(path, base=base)
        return path

    return write_one


def documents(source, split, base, notes=None):
    return sorted(single_pass(source, split, base=base, notify=[].append if notes is None else notes.append))


def test_rows_of_held_out_splits_are_left_out_with_a_note(files, base, write_rows):
    path = write_rows("rows")
    source, notes = files.source(path.name, validation_hash_frac=0.5), []
    train = documents(source, "train", base, notes)
    assert sorted(train + documents(source, "validation", base)) == TRAINED
    assert len(notes) == 2 and notes[1].endswith("3 rows of held-out splits were left out")
    assert f"rows of held-out splits are left out; the first is {path}" in notes[0]
    assert notes[0].endswith("(`split: test`)")


def test_rows_of_validation_files_are_kept(files, base, write_rows):
    write_rows("train")
    write_rows("test", [{"text": "held out", "split": "test"}])
    assert documents(files.source(""), "train", base) == TRAINED
    assert documents(files.source(""), "validation", base) == ["held out"]


def test_stream_continues_between_rows_of_held_out_splits(files, base, write_rows):
    source = files.source(write_rows("rows", ROWS * 3).name, validation_hash_frac=1e-9)
    stream = DocumentStream(source, "train", base=base)
    texts = [next(stream) for _ in range(20)]
    assert {*texts} < {*TRAINED}  # one of the three texts is held out
    for stop in range(1, 19):
        resumed = DocumentStream(source, "train", base=base)
        for _ in range(stop):
            next(resumed)
        again = resumed.reopened(resumed.position())
        assert [next(again) for _ in range(20 - stop)] == texts[stop:]


def test_source_of_held_out_rows_only_is_refused(files, base, write_rows):
    source = files.source(write_rows("rows", [ROWS[1], ROWS[3]]).name)
    with pytest.raises(PreflightError, match=r"no train document; .*; 2 rows of a held-out split"):
        check_documents(source, ("train",), base=base)
