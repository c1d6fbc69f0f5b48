"""The plan counts rows of tasks and characters of text on this machine."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.documents import single_pass
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.plan.specs.inputs import SftItem
from nanochat.runner.preflight.source_sizes import count_examples, held_out_chars

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


def text_source(path, **fields):
    return SourceSpec(name="mine", path=(str(path),), **fields)


def test_held_out_text_of_a_small_source_is_what_validation_reads(tmp_path):
    """One of two documents is held out, although a hundredth of the text would be 200 characters."""
    path = tmp_path / "book.txt"
    path.write_text("".join(f"{i:09d}\n" for i in range(2_000)))  # a document has up to 16,000 characters
    documents = [len(text) for text in single_pass(text_source(path), "validation", base=tmp_path)]
    assert len(documents) == 1 and sum(documents) in (4_000, 16_000)
    assert held_out_chars(text_source(path), base=tmp_path) == sum(documents)
    path.write_text("".join(f"{i:09d}\n" for i in range(1_700)))
    other = sum(len(text) for text in single_pass(text_source(path), "validation", base=tmp_path))
    assert other not in documents and held_out_chars(text_source(path), base=tmp_path) == other


def test_held_out_text_with_files_of_its_own_has_their_size(tmp_path):
    (tmp_path / "train.txt").write_text("a\n" * 500)
    (tmp_path / "validation.txt").write_text("b\n" * 30)
    assert held_out_chars(text_source(tmp_path), base=tmp_path) == 60


def test_held_out_text_of_a_large_source_is_its_share(tmp_path, monkeypatch):
    monkeypatch.setattr("nanochat.data.files.file_sizes.SMALL_BYTES", 999)
    (tmp_path / "a.txt").write_text("a\n" * 500)
    assert held_out_chars(text_source(tmp_path, validation_hash_frac=0.2), base=tmp_path) == 200


def test_held_out_text_of_notes_with_a_table_is_read_as_soon_as_the_table_is_converted(tmp_path):
    """Before, it is the usual share: of 20 characters and a table of 11 bytes."""
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "rows.parquet")
    (tmp_path / "note.md").write_text("a" * 19 + "\n")
    source = text_source(tmp_path, validation_hash_frac=0.5)
    read = sum(len(text) for text in single_pass(source, "validation", base=tmp_path))
    assert held_out_chars(source, base=tmp_path) == read
    (tmp_path / "rows.parquet").unlink()
    (tmp_path / "rows.csv").write_text("text\nab\ncd\n")
    assert held_out_chars(source, base=tmp_path) == round(0.5 * (20 + 11))
