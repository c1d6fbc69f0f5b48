"""Multiple choice for base models has contexts, options with a leading space, and few-shot examples."""

from __future__ import annotations

import json

import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError, StageError
from nanochat.tasks.multiple_choice.base_models import ChoiceItem, build_choice_items, clean_wikihow


def _arc(number, labels="ABCD"):
    texts = [f"{number}{label}" for label in labels]
    return {
        "question": f"q{number}?",
        "choices": {"text": texts, "label": list(labels)},
        "answerKey": labels[number % 4],
    }


def _mmlu(number, subject):
    return {"question": f"q{number}?", "subject": subject, "choices": ["w", "x", "y", "z"], "answer": number % 4}


def _source(folder, **splits):
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceSpec(name="mine", path=(str(folder),))


def test_hellaswag_continues_a_cleaned_context(tmp_path):
    """The ending follows after one space, and WikiHow's marks are removed."""
    row = {"ctx": "[header] How to sing [title] Breathe", "endings": ["in [step] deep.", "out."], "label": "1"}
    assert build_choice_items("hellaswag", _source(tmp_path, validation=[row]), base=tmp_path) == (
        ChoiceItem("How to sing. Breathe", (" in deep.", " out."), 1),
    )


@pytest.mark.parametrize(
    ("text", "clean"),
    [("a [title] b", "a. b"), ("a [substeps] b", "a b"), (" a  b ", "a b"), ("[header] x [step] y", "x y")],
)
def test_wikihow_marks_are_cleaned_as_in_the_usual_harnesses(text, clean):
    assert clean_wikihow(text) == clean


def test_arc_compares_the_texts_of_the_options(tmp_path):
    """The gold index follows the labels of the data, which may be digits."""
    source = _source(tmp_path, test=[_arc(2), _arc(3, labels="1234")])
    assert build_choice_items("arc_easy", source, base=tmp_path) == (
        ChoiceItem("Question: q2?\nAnswer:", (" 2A", " 2B", " 2C", " 2D"), 2),
        ChoiceItem("Question: q3?\nAnswer:", (" 31", " 32", " 33", " 34"), 3),
    )


def test_fewshot_examples_come_from_the_train_split(tmp_path):
    """They are solved, an empty line follows each, and they are the same every time."""
    source = _source(tmp_path, test=[_arc(0), _arc(1)], train=[_arc(number) for number in range(10, 20)])
    items = build_choice_items("arc_challenge", source, base=tmp_path, num_fewshot=2)
    assert items == build_choice_items("arc_challenge", source, base=tmp_path, num_fewshot=2)
    for number, item in enumerate(items):
        first, second, question = item.context.split("\n\n")
        assert question == f"Question: q{number}?\nAnswer:"
        for shot in (first, second):
            drawn = int(shot[len("Question: q") :].split("?")[0])
            assert 10 <= drawn < 20
            assert shot == f"Question: q{drawn}?\nAnswer: {drawn}{'ABCD'[drawn % 4]}"
        assert first != second
        assert [item.context[start:][:10] for start in item.example_starts] == [first[:10], second[:10]]
        assert item.num_fewshot == 2


def test_fewshot_examples_are_other_problems_if_there_is_no_train_split(tmp_path):
    """The question itself is never among them, and there may be fewer than asked for."""
    source = _source(tmp_path, test=[_arc(number) for number in range(4)])
    for number, item in enumerate(build_choice_items("arc_easy", source, base=tmp_path, num_fewshot=9)):
        asked = [part.split("?")[0] for part in item.context.split("Question: ")[1:]]
        assert sorted(asked) == ["q0", "q1", "q2", "q3"]
        assert asked[-1] == f"q{number}"
        assert (item.num_fewshot, len(item.example_starts)) == (9, 3)


def test_fewshot_examples_of_mmlu_come_from_the_dev_split_and_the_same_subject(tmp_path):
    dev = [_mmlu(number, "law" if number < 3 else "art") for number in range(6)]
    source = _source(tmp_path, test=[_mmlu(7, "art"), _mmlu(8, "law")], dev=dev)
    art, law = build_choice_items("mmlu", source, base=tmp_path, num_fewshot=5)
    assert sorted(part[:2] for part in art.context.split("Question: ")[1:-1]) == ["q3", "q4", "q5"]
    assert sorted(part[:2] for part in law.context.split("Question: ")[1:-1]) == ["q0", "q1", "q2"]


def test_max_problems_keeps_the_first_of_a_fixed_shuffle(tmp_path):
    """A larger number adds problems to a smaller one, and every problem keeps its few-shot examples."""
    source = _source(tmp_path, test=[_arc(number) for number in range(40)])
    few, many = (build_choice_items("arc_easy", source, base=tmp_path, num_fewshot=1, max_problems=n) for n in (5, 20))
    assert many[:5] == few
    assert few != build_choice_items("arc_easy", source, base=tmp_path, num_fewshot=1)[:5]
    assert len(set(many)) == 20


@pytest.mark.parametrize(
    "row", [{"ctx": "a", "endings": ["b"], "label": ""}, {"ctx": "a", "endings": ["b"], "label": "1"}, {"ctx": "a"}]
)
def test_hellaswag_row_without_a_valid_label_is_refused(row, tmp_path):
    """The message names the source, the split, and the row's place."""
    with pytest.raises(StageError, match=r"`mine`.*`validation`.*:1: hellaswag: a row must have `ctx`, `endings`"):
        build_choice_items("hellaswag", _source(tmp_path, validation=[row]), base=tmp_path)


def test_missing_split_is_named_and_not_replaced_by_another(tmp_path):
    with pytest.raises(PreflightError, match="no file of split `test`"):
        build_choice_items("arc_easy", _source(tmp_path, train=[_arc(1)]), base=tmp_path)
