"""CORE scores the same tokens, and reaches the same results, as the original implementation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nanochat.evals.core_tasks import evaluate_core_task, find_continuations
from nanochat.tasks.core_bundle import CorePrompts

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "core_prompts.json").read_text())
CASES = GOLDEN["cases"]
BYTE_BOS = GOLDEN["byte_bos"]
IDS = [f"{case['task_type']}-{number}" for number, case in enumerate(CASES)]


def byte_rows(example) -> list[list[int]]:
    return [[BYTE_BOS, *prompt.encode()] for prompt in example["prompts"]]


def toy_rows(tokens: np.ndarray) -> np.ndarray:
    """The logits of the golden file's toy model after each token, (N, 257)."""
    a, b = tokens[:, None].astype(np.float64), np.arange(257, dtype=np.float64)[None]
    logits = 3 * np.sin(0.7 * a + 1.3 * b + 0.11 * a * b)
    is_letter = ((tokens >= 65) & (tokens <= 90)) | ((tokens >= 97) & (tokens <= 122))
    following = np.where(is_letter, np.where(tokens % 2 == 0, 32, 10), tokens + 1)
    following = np.where((tokens == 10) | (tokens == 32), 33, following)
    return logits + 12 * (b == following[:, None])


def ranges(rows) -> tuple[list[int], list[int]]:
    """Where the scored tokens of each row start and end."""
    return [row.start for row in rows], [len(row.tokens) for row in rows]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_core_scores_the_golden_tokens_with_a_byte_tokenizer(case):
    for example in case["examples"]:
        rows = find_continuations(case["task_type"], byte_rows(example), max_tokens=case["max_seq_len"])
        toy = example["toy"]
        assert ranges(rows) == (toy["start"], toy["end"])
        lost = [
            max(0, len(prompt) - len(row.tokens))
            for prompt, row in zip(byte_rows(example)[-len(rows) :], rows, strict=True)
        ]
        assert lost == toy["cropped_on_the_left"]
        whole = find_continuations(case["task_type"], byte_rows(example), max_tokens=None)
        assert ranges(whole) == (example["byte"]["start"], example["byte"]["end"])
        assert [len(row.tokens) for row in whole] == example["byte"]["lengths"]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_core_scores_the_golden_tokens_with_a_word_tokenizer(case):
    """Without its continuation, the prompt of a language-modeling task is the first `start` tokens."""
    for example in case["examples"]:
        tokens, start = example["word"]["tokens"], example["word"]["start"]
        prompts = [tokens[-1][: start[0]], tokens[-1]] if case["task_type"] == "language_modeling" else tokens
        rows = find_continuations(case["task_type"], prompts, max_tokens=None)
        assert ranges(rows) == (start[-len(rows) :], example["word"]["end"])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_core_evaluation_gives_the_golden_score(case, table_model):
    """The mean losses decide which option is chosen."""

    class Bytes:
        bos_id = BYTE_BOS

        def encode(self, text: str) -> list[int]:
            return list(text.encode())

        def decode(self, ids) -> str:
            return bytes(i for i in ids if i != BYTE_BOS).decode(errors="replace")

    kind, items = case["task_type"], GOLDEN["datasets"][case["task_type"]]
    problems = [
        CorePrompts(kind, tuple(example["prompts"]), item.get("gold", 0))
        for example, item in zip(case["examples"], items, strict=True)
    ]
    model = table_model(toy_rows, vocab_size=257, sequence_len=case["max_seq_len"] or 4096)
    result = evaluate_core_task(model, Bytes(), problems, task="toy", chance=0.25)
    assert result.score.accuracy == pytest.approx(case["accuracy"], rel=1e-6)
    assert result.score.centred == pytest.approx((case["accuracy"] - 0.25) / 0.75, rel=1e-6)
    assert [record.correct for record in result.records] == [example["toy"]["correct"] for example in case["examples"]]
    assert [record.is_truncated for record in result.records] == [
        any(example["toy"]["cropped_on_the_left"]) for example in case["examples"]
    ]
    for example, record in zip(case["examples"], result.records, strict=True):
        toy = example["toy"]
        if kind != "language_modeling":
            lengths = np.subtract(toy["end"], toy["start"])
            assert -np.array(record.logprobs) / lengths == pytest.approx(toy["mean_losses"], rel=1e-4)


WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "0123", "ABCD"]


def written_problems(kind: str) -> list[CorePrompts]:
    """Twelve problems of a kind, of several lengths, some longer than the context."""
    problems = []
    for number in range(12):
        about = " ".join(WORDS[(number + i) % len(WORDS)] for i in range(4 + 18 * (number % 4)))
        if kind == "multiple_choice":
            prompts = [f"{about}: {' '.join(WORDS[i : i + 1 + i % 3])}" for i in range(4)]
        elif kind == "schema":
            prompts = [f"{about} {WORDS[i]} sat on it, {number}" for i in range(3)]
        else:
            prompts = [about, f"{about} {WORDS[number % 9]}"]
        problems.append(CorePrompts(kind, tuple(prompts), number % 3 if kind != "language_modeling" else 0))
    return problems


@pytest.mark.parametrize("kind", ["multiple_choice", "schema", "language_modeling"])
def test_core_problems_in_batches_equal_single_rows(kind, random_model, tokenizer, reference_score):
    """Log-probabilities agree within 1e-4 with each row's full logits in float64."""
    problems = written_problems(kind)
    together = evaluate_core_task(random_model, tokenizer, problems, task="t", chance=0.0)
    for problem, record in zip(problems, together.records, strict=True):
        prompts = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in problem.prompts]
        rows = find_continuations(kind, prompts, max_tokens=random_model.config.sequence_len)
        logprobs, is_greedy = zip(*(reference_score(random_model, row) for row in rows), strict=True)
        assert record.logprobs == pytest.approx(logprobs, abs=1e-4)
        means = [logprob / row.length for logprob, row in zip(logprobs, rows, strict=True)]
        assert record.correct == (is_greedy[0] if kind == "language_modeling" else np.argmax(means) == problem.gold)
    assert any(record.is_truncated for record in together.records) == (random_model.config.sequence_len < 100)


def test_core_records_count_the_solved_examples_that_did_not_fit(random_model, tokenizer):
    """Each of the three examples has 30 letters, and the rest of the longest row 4."""
    example, starts = "q" * 28 + "\n\n", (0, 30, 60)
    kinds = ("multiple_choice", "schema", "language_modeling")
    whole = min(3, (random_model.config.sequence_len - 4) // 30)
    for kind in kinds:
        prompts = [example * 3 + "a", example * 3 + "a xx"] if kind != "schema" else [example * 3 + "a xx"] * 2
        problem = CorePrompts(kind, tuple(prompts), 0, starts)
        (record,) = evaluate_core_task(random_model, tokenizer, [problem], task="t", chance=0.0).records
        assert record.missing_examples == 3 - whole
