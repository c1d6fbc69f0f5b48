"""Each rule scores right answers 1 and every kind of wrong answer 0, near misses included."""

from __future__ import annotations

from decimal import Decimal

import pytest

from nanochat.tasks.custom.graders import MAX_COMPLETION_CHARS, check_answer, chosen_label, final_number, grade_text
from nanochat.tasks.task import GradingError

RIGHT = {
    "exact": [("Paris", "Paris"), ("Paris", "  Paris\n"), ("Paris", "Paris<|assistant_end|>"), ("e\u0301", "\u00e9")],
    "number": [
        *(
            ("1000", text)
            for text in ("1000", "1,000", "$1,000.", "It is 1000.", "1000.0", "**1000**", "x=1000", "1e3")
        ),
        *(("0.5", text) for text in (".5", "0.50", "+0.5", "\\boxed{0.5}", "(0.5)", "50e-2")),
        *(("-5", text) for text in ("-5", "\u22125", "-$5", "$-5", "first 7, then -5")),
        *[("7", "007"), ("50", "50%"), ("0", "-0"), ("#### 12", "12"), ("6 * 7 = 42 #### 42", "42")],
    ],
    "contains": [("Paris", "It is paris!"), ("5", "5, I think"), ("5", "It is 5."), ("C++", "I use c++ daily")],
    "letter": [
        ("B", text)
        for text in (
            "B",
            " B.\n",
            "(B)",
            "**B**",
            "B) Paris",
            "B. Paris",
            "B: Paris",
            "B=Paris",
            "Answer: B",
            "B\nIt is.",
        )
    ]
    + [("B", "The answer is (B)."), ("B", "Answer: C\nNo. Answer: B")],
}
WRONG = {
    "exact": [
        ("Paris", text) for text in ("paris", "Paris.", "Par is", "Paris, France", "", "\uff30aris", "Paris\u200b")
    ],
    "number": [
        *(
            ("1000", text)
            for text in ("1,00", "1.000", "1000x", "1000/2", "v1000", "1000kg", "1000 or 2000", "one", "")
        ),
        *(("3", text) for text in ("\u0663", "\uff13", "3-4", "3 4", "2.9999999", "1/3", "inf", "nan", "3" * 65)),
        *[("1000", "1.000,00"), ("0.5", "50%"), ("12", "1_2"), ("1", "1e999999"), ("5", "-5")],
    ],
    "contains": [
        *[("cat", "concatenate"), ("cat", "cats"), ("5", "15"), ("5", "5.2"), ("5", "4.5"), ("5", "1,5"), ("5", "x5")],
        *[("New York", "NewYork"), ("is", "This"), ("a", "")],
    ],
    "letter": [
        ("B", text)
        for text in ("A", "b", "", "BC", "Both", "B or C", "A dog", "I think B", "Answer: B or C", "E", "B is wrong")
    ]
    + [("A", "A dog bit me"), ("B", "The answer is B, not C"), ("B", "Answer: B\nAnswer: C")],
}
PAIRS = [(rule, answer, text, 1.0) for rule, pairs in RIGHT.items() for answer, text in pairs]
PAIRS += [(rule, answer, text, 0.0) for rule, pairs in WRONG.items() for answer, text in pairs]


@pytest.mark.parametrize(("rule", "answer", "text", "score"), PAIRS)
def test_text_rule_scores_right_answers_1_and_near_misses_0(rule, answer, text, score):
    assert grade_text(rule, text, [answer], labels=("A", "B", "C", "D")) == score


@pytest.mark.parametrize("rule", ["exact", "number", "contains", "letter"])
def test_any_of_several_answers_is_right(rule):
    answers = {"number": ["1", "2"], "letter": ["A", "B"]}.get(rule, ["one", "two"])
    assert [grade_text(rule, text, answers, labels=("A", "B", "C")) for text in answers] == [1.0, 1.0]
    wrong = {"number": "3", "letter": "C"}.get(rule, "three")
    assert grade_text(rule, wrong, answers, labels=("A", "B", "C")) == 0.0


def test_labels_of_the_data_are_used_as_they_are():
    """Some ARC questions have the labels 1 to 4, and labels may have several letters."""
    assert chosen_label("(2)", ("1", "2", "3")) == "2"
    assert chosen_label("AB. both", ("A", "AB")) == "AB"
    assert chosen_label("12", ("1", "2")) is None


def test_numbers_are_compared_exactly():
    """Binary fractions would find 0.1 + 0.2 and 0.3 different, and these two equal."""
    assert final_number("0.30") == Decimal("0.3")
    assert grade_text("number", "9007199254740993", ["9007199254740992"]) == 0.0


def test_a_huge_completion_is_not_graded():
    with pytest.raises(GradingError, match="characters"):
        grade_text("exact", "x" * (MAX_COMPLETION_CHARS + 1), ["x"])


def test_regex_finds_what_a_pattern_finds_and_is_case_sensitive():
    assert [grade_text("regex", text, [r"\b19\d\d\b"]) for text in ("in 1999.", "in 2999", "in 19999")] == [
        1.0,
        0.0,
        0.0,
    ]


def test_regex_that_does_not_end_is_stopped():
    """`(a+)+$` needs 2^40 steps for this text."""
    with pytest.raises(GradingError, match="did not end"):
        grade_text("regex", "a" * 40 + "!", ["(a+)+$"])


@pytest.mark.parametrize(
    ("rule", "answer", "message"),
    [
        ("number", "five", "`five` is not a number"),
        ("number", "10/3", "not a number"),
        ("regex", "(", "not a regular expression"),
        ("exact", " ", "empty"),
        ("contains", "", "empty"),
    ],
)
def test_answers_that_a_rule_cannot_use_are_named(rule, answer, message):
    assert message in check_answer(rule, answer)


def test_usable_answers_have_no_problem():
    assert [check_answer("number", "1,000"), check_answer("regex", "a|b"), check_answer("exact", "x")] == [None] * 3
