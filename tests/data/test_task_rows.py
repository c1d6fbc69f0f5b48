from __future__ import annotations

from pathlib import Path, PurePath

import pytest

from nanochat.data.sources import SourceSpec
from nanochat.data.splits import split_of_file
from nanochat.data.task_rows import iter_json_lines, iter_rows, split_files
from nanochat.errors import PreflightError, StageError


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("gsm8k/train-00000-of-00001.parquet", "train"),
        ("main/test-00000-of-00001.parquet", "test"),
        ("all/auxiliary_train-00000-of-00001.parquet", "auxiliary_train"),
        ("all/dev-00000-of-00001.parquet", "dev"),
        ("data/validation-00000-of-00003.parquet", "validation"),
        ("chat/sgd_validation.jsonl", "validation"),
        ("val.jsonl", "validation"),
        ("test/part0.parquet", "test"),
        ("latest.jsonl", None),
        ("training/shard_0.parquet", None),
        ("self_instruct_human.jsonl", None),
    ],
)
def test_a_file_tells_its_split_by_name_or_folder(path, split):
    assert split_of_file(PurePath(path)) == split


def test_rows_of_a_split_come_in_order_with_the_columns_asked_for(files, base):
    for i in range(2):
        files.parquet(f"train-0000{i}-of-00002.parquet", [f"{i}{j}" for j in range(3)], column="question")
    files.parquet("test-00000-of-00001.parquet", ["never"], column="question")
    source = SourceSpec(name="mine", path=(str(files.folder),))
    rows = list(iter_rows(source, "train", base=base, columns=["question"]))
    assert rows == [{"question": text} for text in ["00", "01", "02", "10", "11", "12"]]


def test_a_split_that_is_not_there_is_named_with_those_that_are(files, base):
    files.parquet("train-0.parquet", ["x"])
    files.parquet("dev-0.parquet", ["x"])
    with pytest.raises(PreflightError, match=r"no file of split `test`; .*: dev \(1\), train \(1\)"):
        split_files(files.source("*.parquet"), "test", base=base)


def test_files_that_tell_no_split_serve_for_every_one(files, base):
    files.jsonl("own.jsonl", [{"a": 1}])
    assert [path.name for path in split_files(files.source("own.jsonl"), "test", base=base)] == ["own.jsonl"]


def test_a_missing_column_is_named(files, base):
    path = files.parquet("train.parquet", ["x"], column="query")
    with pytest.raises(PreflightError) as caught:
        list(iter_rows(files.source("train.parquet"), "train", base=base, columns=["question"]))
    assert str(caught.value) == f"{path}: no column `question`; its columns are: query"


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("{broken", StageError, "not JSON"),
        ("[]", StageError, "expected an object, found list"),
        ('{"query": 1}', PreflightError, "no key `question`; its keys are: query"),
    ],
)
def test_a_bad_line_is_named(files, base, line, error, message):
    path = files.text("train.jsonl", f'{{"question": "fine"}}\n{line}\n')
    with pytest.raises(error) as caught:
        list(iter_rows(files.source("train.jsonl"), "train", base=base, columns=["question"]))
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_bad_lines_can_be_gone_over(files, base):
    files.text("own.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n{bad\n[1, 2]\n{"a": "\xff"}')
    lines = list(iter_json_lines(files.source("own.jsonl"), "train", base=base))
    assert [(line.line, line.value) for line in lines] == [(1, {"a": 1}), (3, None), (4, [1, 2]), (5, None)]
    assert [line.problem is None for line in lines] == [True, False, True, False]


def test_no_rows_at_all_is_an_error(files, base):
    files.text("train.jsonl", "\n\n")
    with pytest.raises(PreflightError, match="split `train` has no rows"):
        list(iter_rows(files.source("train.jsonl"), "train", base=base))


def test_a_builtin_source_has_no_rows(base):
    with pytest.raises(PreflightError, match="has no rows to read"):
        split_files(SourceSpec(name="w", builtin="spelling"), "train", base=Path(base))
