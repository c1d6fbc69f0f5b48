"""The plan counts the rows of tasks that are on this machine, without opening parquet with its library."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.sources import SourceSpec
from nanochat.plan.specs.inputs import SftItem
from nanochat.runner.preflight.row_counts import count_examples

LINE = b'{"prompt": "hello", "completion": "world"}\n'


def item(path, **fields):
    given = {"task": "conversations", "split": "train", "max_examples": None, "repeat": 1}
    return SftItem(name="mine", source=SourceSpec(name="mine", path=(str(path),)), **(given | fields))


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 50),
        ({"repeat": 3}, 50),
        ({"split": "train[:20]"}, 20),
        ({"split": "train[-60:]"}, 50),
        ({"max_examples": 7}, 7),
        ({"validation_frac": 0.1}, 45),
    ],
)
@pytest.mark.parametrize("name", ["chats.jsonl", "chats.jsonl.gz", "chats.parquet"])
def test_examples_are_those_of_the_part_that_is_trained_on(tmp_path, name, fields, count):
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"prompt": ["hello"] * 50, "completion": ["world"] * 50}), path)
    else:
        path.write_bytes(gzip.compress(LINE * 50) if name.endswith("gz") else LINE * 25 + b"\n" + LINE * 25)
    assert count_examples(item(path, **fields), base=tmp_path) == count


@pytest.mark.parametrize("name", ["chats.csv", "gone.jsonl", "damaged.parquet"])
def test_examples_are_unknown_before_a_conversion_and_for_a_bad_file(tmp_path, name):
    (tmp_path / "chats.csv").write_text("prompt,completion\nhello,world\n")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    assert count_examples(item(tmp_path / name), base=tmp_path) is None
