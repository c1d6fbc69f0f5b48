"""A task checks whether it can read its source before any work starts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError
from nanochat.tasks.build import check_task
from nanochat.tasks.core_bundle import check_bundle
from nanochat.tasks.multiple_choice.base_models import check_choices

ARC = {"id": "1", "question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}
MMLU = {"question": "q", "subject": "s", "choices": ["a", "b"], "answer": 1}
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
PROGRAM = dict.fromkeys(("task_id", "prompt", "canonical_solution", "test", "entry_point"), "x")
GSM8K = {"question": "2+2?", "answer": "#### 4"}
ROWS = {  # a row of each task, and a column that it needs
    "gsm8k": (GSM8K, "answer"),
    "mmlu": (MMLU, "choices"),
    "arc_easy": (ARC, "answerKey"),
    "arc_challenge": (ARC, "choices"),
    "humaneval": (PROGRAM, "entry_point"),
    "conversations": (CHAT, "messages"),
}


@pytest.fixture
def write(tmp_path):
    def write_rows(rows, name="train-0.parquet"):
        path = tmp_path / "data" / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        return SourceSpec(name="mine", path=(str(path.parent),))

    return write_rows


@pytest.mark.parametrize("task", sorted(ROWS))
def test_check_accepts_the_tasks_rows_and_refuses_one_without_a_column(task, write, tmp_path):
    """The message names the source, the file and the missing column."""
    row, needed = ROWS[task]
    check_task(task, write([row]), "train", base=tmp_path)
    bad = {name: value for name, value in row.items() if name != needed} or {"text": "x"}
    source = write([bad], "train-1.parquet")
    if task == "conversations":  # one bad row among good ones would only be counted
        (tmp_path / "data" / "train-0.parquet").unlink()
    with pytest.raises(PreflightError, match=rf"(must have|expected) .*\b{needed}\b") as caught:
        check_task(task, source, "train", base=tmp_path)
    assert "train-1.parquet" in str(caught.value) and "source `mine`" in str(caught.value)


def test_check_accepts_mmlu_rows_inside_train(write, tmp_path):
    check_task("mmlu", write([{"train": MMLU}]), "train", base=tmp_path)


def test_check_reads_the_usual_split_of_a_base_task(write, tmp_path):
    """HellaSwag's usual split is validation, and MMLU's is test."""
    row = {"ctx": "c", "endings": ["a", "b"], "label": "1"}
    check_choices("hellaswag", write([row], "validation-0.parquet"), None, base=tmp_path)
    with pytest.raises(PreflightError, match=r"validation-1\.parquet row 1: hellaswag: a row must have `ctx`"):
        check_choices("hellaswag", write([{"ctx": "c"}], "validation-1.parquet"), None, base=tmp_path)
    with pytest.raises(PreflightError, match="no file of split `test`"):
        check_choices("mmlu", write([MMLU]), None, base=tmp_path)


def test_check_accepts_chat_data_with_a_few_bad_lines_only(tmp_path):
    good = json.dumps(CHAT)
    path = tmp_path / "a.jsonl"
    source = SourceSpec(name="mine", path=(str(path),))
    path.write_text("{}\n" * 3 + good)
    check_task("conversations", source, "train", base=tmp_path)
    path.write_text("{}\n" * 30)
    with pytest.raises(PreflightError, match=r"source `mine` .*30 of 30 conversations cannot be used"):
        check_task("conversations", source, "train", base=tmp_path)
    path.write_text("")
    with pytest.raises(PreflightError, match=r"source `mine` .*a\.jsonl \(empty\)"):
        check_task("conversations", source, "train", base=tmp_path)


def test_check_finds_bad_rows_in_the_middle_of_small_files(tmp_path):
    """Eleven of a hundred lines are too many. Rows after the examples that training uses are not read."""
    good = json.dumps(CHAT)
    path = tmp_path / "a.jsonl"
    source = SourceSpec(name="mine", path=(str(path),))
    path.write_text(f"{good}\n" * 89 + "{}\n" * 11)
    with pytest.raises(PreflightError, match=r"source `mine` .*11 of 100 conversations[^$]*a\.jsonl:90: "):
        check_task("conversations", source, "train", base=tmp_path)
    check_task("conversations", source, "train", base=tmp_path, max_examples=89)
    rows = [json.dumps(GSM8K)] * 5 + ['{"question": "q", "answer": "none"}']
    path.write_text("\n".join(rows))
    with pytest.raises(PreflightError, match=r"source `mine` .*a\.jsonl:6: gsm8k: a row must have"):
        check_task("gsm8k", source, "train", base=tmp_path)
    check_task("gsm8k", source, "train", base=tmp_path, max_examples=5)


def test_check_refuses_a_word_list_without_words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("UPPER\n123\n")
    with pytest.raises(PreflightError, match=r"words\.txt: no word of lower-case letters"):
        check_task("spelling_bee", SourceSpec(name="mine", path=(str(path),)), "train", base=tmp_path)
    check_task("spelling_bee", SourceSpec(name="mine", builtin="spelling"), "test", base=tmp_path)


def test_check_of_the_bundle_covers_tasks_baselines_and_items(tmp_path):
    source = SourceSpec(name="bundle", path=(str(tmp_path),))
    with pytest.raises(PreflightError, match=r"no core\.yaml there"):
        check_bundle(source, base=tmp_path)
    entry = "{label: a, dataset_uri: a.jsonl, num_fewshot: [0], icl_task_type: schema}"
    (tmp_path / "core.yaml").write_text(f"icl_tasks: [{entry}]\n")
    (tmp_path / "eval_meta_data.csv").write_text("Eval Task,Random baseline\na,50\n")
    with pytest.raises(PreflightError, match=r"source `bundle` .*eval_data/a\.jsonl: cannot be read"):
        check_bundle(source, base=tmp_path)
    (tmp_path / "eval_data").mkdir()
    (tmp_path / "eval_data" / "a.jsonl").write_text("{}")
    check_bundle(source, base=tmp_path)


def test_check_names_a_missing_folder_and_its_source(tmp_path):
    with pytest.raises(PreflightError, match=r"source `mine`: .*nowhere: no such file"):
        check_task("gsm8k", SourceSpec(name="mine", path=(str(Path("nowhere")),)), "train", base=tmp_path)
