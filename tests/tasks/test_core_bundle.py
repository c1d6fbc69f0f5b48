"""CORE reads its bundle, and renders the prompts of the golden file."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError, StageError
from nanochat.tasks.core_bundle import (
    build_core_prompts,
    bundle_folder,
    fewshot_indices,
    parse_item,
    read_bundle,
    read_items,
    render_prompts,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "core_prompts.json").read_text())
YAML = """
icl_tasks:
- label: easy
  dataset_uri: reading/easy.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
- label: last_word
  dataset_uri: last_word.jsonl
  num_fewshot: [0, 1]
  icl_task_type: language_modeling
"""
CSV = 'Eval Task,Task Category,Random baseline,Description\neasy,reading,25,"a, b"\nlast_word,lm,0.0,x\n'


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: f"{case['task_type']}-{case['max_seq_len']}")
def test_prompts_and_draws_equal_the_golden_ones(case):
    items = [parse_item(case["task_type"], item) for item in GOLDEN["datasets"][case["task_type"]]]
    delimiter = case["continuation_delimiter"]
    for example in case["examples"]:
        drawn = fewshot_indices(example["index"], len(items), case["num_fewshot"])
        item = items[example["index"]]
        assert drawn == example["fewshot_indices"]
        assert list(render_prompts(item, [items[i] for i in drawn], delimiter=delimiter)) == example["prompts"]
        assert list(render_prompts(item, [], delimiter=delimiter)) == example["prompts_without_fewshot"]


@pytest.fixture
def bundle(tmp_path):
    """The folder of an unpacked bundle with two tasks."""
    folder = tmp_path / "eval_bundle"
    (folder / "eval_data" / "reading").mkdir(parents=True)
    (folder / "core.yaml").write_text(YAML)
    (folder / "eval_meta_data.csv").write_text(CSV)
    easy = [{"query": f"q{n}", "choices": ["a", "b", "c", "d"], "gold": n % 4} for n in range(9)]
    words = [{"context": f" c{n} ", "continuation": "word"} for n in range(3)]
    for name, rows in (("reading/easy", easy), ("last_word", words)):
        (folder / "eval_data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_bundle_is_read_in_order_with_defaults(bundle, tmp_path):
    """The default delimiter is a space, and chance is a share of 1."""
    folder = bundle_folder(SourceSpec(name="core", path=(str(tmp_path),)), base=tmp_path)
    assert folder == bundle == bundle_folder(SourceSpec(name="core", path=(str(bundle),)), base=tmp_path)
    easy, words = read_bundle(folder)
    assert (easy.label, easy.kind, easy.num_fewshot, easy.delimiter, easy.chance) == (
        "easy", "multiple_choice", 2, "\nAnswer: ", 0.25,
    )  # fmt: skip
    assert (words.kind, words.num_fewshot, words.delimiter, words.chance) == ("language_modeling", 0, " ", 0.0)


def test_problems_are_shuffled_cut_and_given_examples(bundle):
    """Random(1337) shuffles the items, and solved examples are drawn from those that are kept."""
    easy, words = read_bundle(bundle)
    order = list(range(9))
    random.Random(1337).shuffle(order)
    problems = build_core_prompts(easy, max_problems=5)
    assert len(problems) == 5
    for index, (problem, number) in enumerate(zip(problems, order, strict=False)):
        shots = [order[other] for other in fewshot_indices(index, 5, 2)]
        before = "".join(f"q{shot}\nAnswer: {'abcd'[shot % 4]}\n\n" for shot in shots)
        assert problem.prompts == tuple(f"{before}q{number}\nAnswer: {choice}" for choice in "abcd")
        assert problem.gold == number % 4
    assert sorted(problem.prompts for problem in build_core_prompts(words)) == [
        (f"c{n}", f"c{n} word") for n in range(3)
    ]


def test_errors_of_the_bundle_name_the_file_or_the_task(bundle):
    easy, words = read_bundle(bundle)
    with pytest.raises(StageError, match="has 2 items, too few for 2 solved examples"):
        build_core_prompts(easy, max_problems=2)
    words.path.write_text('{"context": "a"}\n')
    with pytest.raises(StageError, match=r"last_word\.jsonl:1: not an item of a language_modeling task"):
        read_items(words)
    words.path.write_text('{"context": "a"\n')
    with pytest.raises(StageError, match=r"last_word\.jsonl:1: not JSON"):
        read_items(words)
    words.path.unlink()
    with pytest.raises(PreflightError, match=r"last_word\.jsonl"):
        read_items(words)
    (bundle / "eval_meta_data.csv").write_text("Eval Task,Random baseline\neasy,25\n")
    with pytest.raises(PreflightError, match="last_word"):
        read_bundle(bundle)
    (bundle / "eval_meta_data.csv").write_text("Eval Task\neasy\n")
    with pytest.raises(PreflightError, match="`Random baseline`"):
        read_bundle(bundle)
    (bundle / "eval_meta_data.csv").write_text(CSV)
    (bundle / "core.yaml").write_text(YAML.replace("language_modeling", "generation"))
    with pytest.raises(PreflightError, match="generation"):
        read_bundle(bundle)
    (bundle / "core.yaml").write_text("icl_tasks: [")
    with pytest.raises(PreflightError, match=r"core\.yaml"):
        read_bundle(bundle)
    (bundle / "core.yaml").unlink()
    with pytest.raises(PreflightError, match=r"`core`.*unpacked bundle"):
        bundle_folder(SourceSpec(name="core", path=(str(bundle),)), base=bundle)


@pytest.mark.parametrize("name", ["../../secret.jsonl", "/etc/passwd", "a\\nb.jsonl"])
def test_bundle_reads_no_file_outside_its_folder(bundle, name):
    """The rows of such a file would reach the tables of the results."""
    (bundle / "core.yaml").write_text(YAML.replace("last_word.jsonl", f'"{name}"'))
    with pytest.raises(PreflightError, match=r"core\.yaml: the task last_word reads .*: its name"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("multiple_choice", {"query": "q", "choices": ["a"], "gold": 1}),
        ("schema", {"context_options": ["a"], "continuation": "c", "gold": -1}),
        ("schema", {"query": "q", "choices": ["a"], "gold": 0}),
        ("language_modeling", ["context"]),
    ],
)
def test_item_of_another_kind_is_not_parsed(kind, value):
    assert parse_item(kind, value) is None
