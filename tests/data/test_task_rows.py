from __future__ import annotations

from pathlib import Path, PurePath

import pytest

from nanochat.data.files.formats.json_lines import json_lines
from nanochat.data.files.selection.data_file import split_of_file
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.data.task_rows import iter_rows, split_files
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
        ("data/train_sft-00000-of-00001-abc123.parquet", "train"),
        ("validation_matched.jsonl", "validation"),
        ("train_0.jsonl", "train"),
        ("Train.JSONL", "train"),
        ("chats.test.jsonl", "test"),
        ("test/a/x.jsonl", "test"),
        ("test_sft/0000.parquet", "test"),
        ("contest.txt", None),
        ("a_test_of_courage.txt", None),
        ("TinyStoriesV2-GPT4-valid.txt", "validation"),
        ("test (1).jsonl", "test"),
        ("test copy.jsonl", "test"),
        ("test 1.jsonl", "test"),
        ("tests/a.jsonl", None),
        ("eval.jsonl", "validation"),
        ("evaluation/a.jsonl", "validation"),
        ("validate.jsonl", "validation"),
        ("held_out.jsonl", "validation"),
        ("heldout.jsonl", "validation"),
        ("holdout/a.jsonl", "validation"),
        ("x.test.v1.jsonl", "test"),
        ("my_test_data.jsonl", "test"),
        ("x_test_v2.jsonl", "test"),
        ("gold_test_final.jsonl", "test"),
        ("test/train_timetable.txt", "test"),
        ("testament.txt", None),
        ("testimony (1).txt", None),
        ("development.txt", None),
        ("Test-Driven Development.txt", None),
        ("Dev-Ops handbook.txt", None),
        ("x_eval.jsonl", "validation"),
        ("wiki-eval.txt", "validation"),
        ("x_evaluation-00000-of-00002.parquet", "validation"),
        ("chat_eval_v2.json", "validation"),
        ("corpus.heldout.txt", "validation"),
        ("x_held_out.md", "validation"),
        ("TestData.jsonl", "test"),
        ("TestData.csv.gz", "test"),
        ("MyTestSet.jsonl", "test"),
        ("testset.txt", "test"),
        ("my-devset2.jsonl", "dev"),
        ("EvalData.parquet", "validation"),
        ("ValidationSplit.tsv", "validation"),
        ("TestData/a.jsonl", "test"),
        ("x_eval/a.jsonl", "validation"),
        ("medieval.txt", None),
        ("how_we_eval.md", None),
        ("base_eval.py", None),
        ("TestData.java", None),
        ("LatestData.jsonl", None),
        ("contest_data.jsonl", None),
        ("LatestEvaluations.txt", None),
        ("TestDriven.Development.txt", None),
        ("DevLogBook.txt", None),
        ("TuringTest.txt", None),
        ("test_a_b.jsonl", None),
    ],
)
def test_split_of_file_reads_the_name_or_a_folder(path, split):
    label = split_of_file(PurePath(path))
    assert (label.split if label else None) == split


def test_iter_rows_yields_a_split_in_order_with_the_place_of_each_row(files, base):
    paths = [
        files.parquet(f"train-0000{i}-of-00002.parquet", [f"{i}{j}" for j in range(3)], column="question")
        for i in range(2)
    ]
    files.parquet("test-00000-of-00001.parquet", ["never"], column="question")
    source = SourceSpec(name="mine", path=(str(files.folder),))
    rows = list(iter_rows(source, "train", base=base))
    assert [row.values for row in rows] == [{"question": text} for text in ["00", "01", "02", "10", "11", "12"]]
    assert [row.where for row in rows] == [f"{path} row {number}" for path in paths for number in (1, 2, 3)]


def test_split_files_names_a_missing_split_and_those_that_exist(files, base):
    files.parquet("train-0.parquet", ["x"])
    files.parquet("dev-0.parquet", ["x"])
    with pytest.raises(PreflightError, match=r"no file of split `test`; .*: dev \(1\), train \(1\)"):
        split_files(files.source("*.parquet"), "test", base=base)


def test_split_files_without_a_split_in_their_names_belong_to_every_split(files, base):
    files.jsonl("own.jsonl", [{"a": 1}])
    assert [file.name.name for file in split_files(files.source("own.jsonl"), "test", base=base)] == ["own.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "not JSON"),
        ("[", "not JSON: Expecting value at column 1; the file seems to be one JSON document"),
        ('{"id": ' + "9" * 5000 + "}", "holds a number of more than 4,300 digits"),
        ('[{"question": 1}]', "expected an object, found list; this is a JSON array of 1 row: write"),
        ("[]", "expected an object, found list"),
    ],
)
def test_iter_rows_names_a_bad_line(files, base, line, message):
    path = files.text("train.jsonl", f'{{"question": "fine"}}\n{line}\n')
    with pytest.raises(StageError) as caught:
        list(iter_rows(files.source("train.jsonl"), "train", base=base))
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_json_lines_carry_the_problem_of_a_bad_line(files):
    path = files.text("own.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n{bad\n[1, 2]\n{"a": "\xff"}')
    lines = list(json_lines(path))
    assert [(line.line, line.value) for line in lines] == [(1, {"a": 1}), (3, None), (4, [1, 2]), (5, None)]
    assert [line.problem is None for line in lines] == [True, False, True, False]


def test_iter_rows_refuses_a_split_without_rows(files, base):
    files.text("train.jsonl", "\n\n")
    with pytest.raises(PreflightError, match="split `train` has no rows"):
        list(iter_rows(files.source("train.jsonl"), "train", base=base))


def test_split_files_refuses_a_builtin_source(base):
    with pytest.raises(PreflightError, match="has no rows to read"):
        split_files(SourceSpec(name="w", builtin="spelling"), "train", base=Path(base))
