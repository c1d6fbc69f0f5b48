"""Tests that our readers give the rows that the independent library `datasets` gives."""

from __future__ import annotations

import json
import random
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.task_rows import iter_rows

pytestmark = pytest.mark.slow  # importing `datasets` takes seconds


@pytest.fixture
def library(tmp_path, monkeypatch):
    """The library `datasets`, offline, with its cache in the test's folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import datasets

        datasets.disable_progress_bars()
        yield datasets


def rows_of(count):
    """Rows with the values of real data sets: any text, lists, structs, numbers, nulls."""
    draw = random.Random(0)
    return [
        {
            "question": "".join(chr(draw.choice([65, 233, 8364, 128512, 10])) for _ in range(draw.randrange(40))),
            "choices": {"text": ["a", "b"][: 1 + i % 2], "label": ["A", "B"][: 1 + i % 2]},
            "answer": i % 4,
            "subject": None if i % 3 == 0 else f"s{i}",
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("row_group_size", [7, 300, 5000])
def test_parquet_rows_equal_those_of_datasets(library, files, base, tmp_path, row_group_size):
    for name, count in (("train-0.parquet", 1000), ("train-1.parquet", 3)):
        table = pa.Table.from_pylist(rows_of(count))
        pq.write_table(table, files.folder / name, row_group_size=row_group_size, compression="zstd")
    paths = [str(files.folder / f"train-{i}.parquet") for i in (0, 1)]
    theirs = library.load_dataset("parquet", data_files=paths, split="train", cache_dir=str(tmp_path / "cache"))
    ours = [row.values for row in iter_rows(files.source(""), "train", base=base)]
    assert ours == list(theirs) and len(ours) == 1003


def test_json_lines_equal_those_of_datasets(library, files, base, tmp_path):
    path = files.jsonl("train.jsonl", rows_of(500))
    theirs = library.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    ours = [row.values for row in iter_rows(files.source("train.jsonl"), "train", base=base)]
    assert ours == [json.loads(json.dumps(row)) for row in theirs] and len(ours) == 500
