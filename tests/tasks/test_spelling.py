"""Spelling tasks generate the same examples every time, and train and evaluate on different words."""

from __future__ import annotations

import re

import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import PreflightError
from nanochat.tasks.generative.spelling import QUESTIONS, Spelling, read_words, render_counting
from nanochat.tasks.task import gold_text
from nanochat.tokenizer.chat_format import Part, render

WORDS = ("apple", "banana", "cherry", "date", "elderberry", "fig", "grape")
BUILTIN = SourceSpec(name="words", builtin="spelling")


def test_spelling_example_is_rendered_as_by_hand(tokenizer):
    task = Spelling("simple_spelling", words=("fig",), size=1, split="train", seed=0)
    rendered = render(tokenizer, task[0].conversation)
    # <|bos|> 256, <|user_start|> 257, <|user_end|> 258, <|assistant_start|> 259, <|assistant_end|> 260
    user = [83, 112, 101, 108, 108, 32, 116, 104, 101, 32, 119, 111, 114, 100, 58, 32, 102, 105, 103]
    answer = [102, 105, 103, 58, 102, 44, 105, 44, 103]
    assert rendered.ids == [256, 257, *user, 258, 259, *answer, 260]
    assert rendered.mask == [0] * 23 + [1] * 10


def test_counting_answer_is_rendered_as_by_hand():
    assert render_counting("noon", "o") == (
        Part(
            "text",
            "I spell the word out and mark every o.\n\nnoon:n,o,o,n\n\n1:n\n2:o * 1\n3:o * 2\n4:n\n\n"
            "That makes 2. I check it with Python: ",
        ),
        Part("python", "'noon'.count('o')"),
        Part("python_output", "2"),
        Part("text", "\n\n#### 2"),
    )


def test_counting_example_is_rendered_as_by_hand(tokenizer):
    """The ids 261-264 mark call and output, and only the output is not trained on."""
    task = Spelling("spelling_bee", words=("fig",), size=2, split="train", seed=0)
    rendered = render(tokenizer, task[1].conversation)
    user = b'Count the letter "g" in "fig"?'
    by_hand = b"I spell the word out and mark every g.\n\nfig:f,i,g\n\n1:f\n2:i\n3:g * 1\n\n"
    said = by_hand + b"That makes 1. I check it with Python: "
    call, after = b"'fig'.count('g')", b"\n\n#### 1"
    assert rendered.ids == [256, 257, *user, 258, 259, *said, 261, *call, 262, 263, 49, 264, *after, 260]
    assert rendered.mask == [0] * 34 + [1] * (68 + 38 + 18) + [0] * 3 + [1] * 9


@pytest.mark.parametrize("kind", ["simple_spelling", "spelling_bee"])
def test_examples_depend_on_seed_split_and_index_alone(kind):
    """The order of access and the size of the task do not matter. Another seed or split gives other examples."""
    task = Spelling(kind, words=WORDS, size=70, split="train", seed=0)
    again = Spelling(kind, words=WORDS, size=700, split="train", seed=0)
    assert [task[i] for i in range(70)] == [again[i] for i in reversed(range(70))][::-1]
    for other in (
        Spelling(kind, words=WORDS, size=70, split="train", seed=1),
        Spelling(kind, words=WORDS, size=70, split="test", seed=0),
    ):
        assert [task[i] for i in range(70)] != [other[i] for i in range(70)]


def test_every_word_occurs_once_before_any_occurs_twice():
    task = Spelling("simple_spelling", words=WORDS, size=14, split="train", seed=3)
    words = [task[i].meta["word"] for i in range(14)]
    assert sorted(words[:7]) == sorted(words[7:]) == sorted(WORDS)


def test_index_outside_the_task_is_an_error_and_ends_iteration():
    task = Spelling("spelling_bee", words=WORDS, size=3, split="train", seed=0)
    assert len(list(task)) == len(task) == 3
    with pytest.raises(IndexError):
        task[3]
    with pytest.raises(IndexError):
        task[-1]


def test_built_in_words_for_training_and_evaluation_do_not_overlap():
    train, test = (set(read_words(BUILTIN, split, base=None)) for split in ("train", "test"))
    assert not train & test
    assert len(train) > 2000
    assert len(test) > 200
    assert all(re.fullmatch("[a-z]{2,32}", word) for word in train | test)


def test_words_are_read_from_a_file_with_one_word_per_line(tmp_path):
    """Any line ending works, and lines that are not words are ignored."""
    path = tmp_path / "words.txt"
    words = sorted(a + b + "ly" for a in "abc" for b in "defg")
    path.write_bytes("\r\n".join(["word0", "x", *words]).encode())
    source = SourceSpec(name="mine", path=(str(path),))
    train, test = (read_words(source, split, base=tmp_path) for split in ("train", "test"))
    assert sorted(train + test) == words


def test_source_without_words_is_refused_by_name(tmp_path):
    with pytest.raises(PreflightError, match=r"`docs`.*holds no words"):
        read_words(SourceSpec(name="docs", builtin="python-stdlib"), "train", base=tmp_path)


def test_letter_is_from_the_word_in_nine_cases_of_ten():
    """In the tenth it is any letter, so that P(letter not in word) is about 0.1 * 0.8."""
    task = Spelling("spelling_bee", words=WORDS, size=4000, split="train", seed=0)
    misses = sum(example.meta["letter"] not in example.meta["word"] for example in task)
    assert 0.05 < misses / 4000 < 0.11  # standard error 0.004


def test_questions_vary_in_case_quotes_marks_and_language():
    task = Spelling("spelling_bee", words=WORDS, size=3000, split="train", seed=0)
    texts = [example.conversation.messages[0].text() for example in task]
    shares = {
        "quoted": sum("'" in text or '"' in text for text in texts) / 3000,
        "marked": sum(text.endswith("?") for text in texts) / 3000,
        "lower": sum(text == text.lower() for text in texts) / 3000,
    }
    assert 0.4 < shares["quoted"] < 0.6
    assert 0.4 < shares["marked"] < 0.6
    assert 0.25 < shares["lower"] < 0.6  # some templates have no capital at all
    assert sum(not text.isascii() for text in texts) > 300
    assert len(QUESTIONS) == len(set(QUESTIONS)) >= 50
    for template in QUESTIONS:
        assert template.count("{word}") == template.count("{letter}") == 1
        assert "?" not in template


@pytest.mark.parametrize("kind", ["simple_spelling", "spelling_bee"])
def test_grade_accepts_gold_answers_and_refuses_empty_ones(kind):
    task = Spelling(kind, words=WORDS, size=40, split="test", seed=0)
    for example in task:
        gold = gold_text(example)
        assert task.grade(example, gold)
        assert task.grade(example, f" {gold}<|assistant_end|><|bos|>more")
        assert not task.grade(example, "")


def test_grade_of_a_spelling_requires_the_exact_text():
    task = Spelling("simple_spelling", words=("fig",), size=1, split="test", seed=0)
    assert task.grade(task[0], "fig:f,i,g\n")
    for wrong in ("f,i,g", "fig:f,i,g,g", "fig: f, i, g", "Fig:f,i,g", "fig:f,i", "fig:f,i,g fig:f,i,g"):
        assert not task.grade(task[0], wrong), wrong


def test_grade_of_a_count_uses_the_number_after_the_hashes():
    """The output of the call alone, or a number elsewhere, does not count."""
    task = Spelling("spelling_bee", words=("noon",), size=30, split="test", seed=0)
    example = next(example for example in task if example.meta["letter"] == "o")
    for right in ("#### 2", "x\n#### 2.", "#### 2.0<|assistant_end|>", "<|python_start|>1<|python_end|>#### 2"):
        assert task.grade(example, right), right
    for wrong in ("2", "That makes 2.", "#### 3", "#### 2 2"[:4], "#### two", "<|assistant_end|>#### 2", "#### 22"):
        assert not task.grade(example, wrong), wrong
