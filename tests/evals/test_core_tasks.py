"""CORE's spans and verdicts are those of the original."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from nanochat.evals.continuations import score_continuations
from nanochat.evals.core_tasks import choose_option, evaluate_core_task, find_continuations
from nanochat.tasks.core.bundle import CorePrompts

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


@pytest.mark.parametrize(("a", "b", "logit"), GOLDEN["toy_samples"])
def test_the_toy_model_is_the_golden_one(a, b, logit):
    assert toy_rows(np.array([a]))[0, b] == pytest.approx(logit, abs=1e-5)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_spans_with_byte_tokens(case):
    for example in case["examples"]:
        spans = find_continuations(case["task_type"], byte_rows(example), max_tokens=case["max_seq_len"])
        toy = example["toy"]
        assert [span.start for span in spans] == toy["start"]
        assert [span.end for span in spans] == toy["end"]
        lost = [
            max(0, len(row) - len(span.tokens))
            for row, span in zip(byte_rows(example)[-len(spans) :], spans, strict=True)
        ]
        assert lost == toy["cropped_on_the_left"]
        whole = find_continuations(case["task_type"], byte_rows(example), max_tokens=None)
        assert [span.start for span in whole] == example["byte"]["start"]
        assert [span.end for span in whole] == example["byte"]["end"]
        assert [len(span.tokens) for span in whole] == example["byte"]["lengths"]


@pytest.mark.parametrize("case", [c for c in CASES if c["task_type"] != "language_modeling"])
def test_spans_with_word_tokens(case):
    for example in case["examples"]:
        spans = find_continuations(case["task_type"], example["word"]["tokens"], max_tokens=None)
        assert [span.start for span in spans] == example["word"]["start"]
        assert [span.end for span in spans] == example["word"]["end"]


@pytest.mark.parametrize("case", [c for c in CASES if c["task_type"] == "language_modeling"])
def test_a_continuation_is_scored_from_where_the_prompt_without_it_ends(case):
    """With word tokens the prompt without continuation is the first `start` tokens."""
    for example in case["examples"]:
        full, start = example["word"]["tokens"][-1], example["word"]["start"][0]
        (span,) = find_continuations("language_modeling", [full[:start], full], max_tokens=None)
        assert (span.start, span.end) == (start, example["word"]["end"][0])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_toy_models_losses_and_verdicts(case, table_model):
    kind = case["task_type"]
    model = table_model(toy_rows, vocab_size=257)
    groups = [
        find_continuations(kind, byte_rows(example), max_tokens=case["max_seq_len"]) for example in case["examples"]
    ]
    verdicts = []
    for number, (example, scores) in enumerate(zip(case["examples"], score_continuations(model, groups), strict=True)):
        toy = example["toy"]
        chosen = choose_option(kind, scores)
        if kind == "language_modeling":
            verdicts.append(chosen == 0)
        else:
            assert [score.mean_nats for score in scores] == pytest.approx(toy["mean_losses"], rel=1e-4)
            assert chosen == toy["predicted"]
            verdicts.append(chosen == GOLDEN["datasets"][kind][number]["gold"])
        assert verdicts[-1] == toy["correct"]
    assert np.mean(verdicts) == pytest.approx(case["accuracy"], rel=1e-6)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_whole_evaluation_agrees(case, table_model):
    """Prompts in, score and records out, with byte tokens."""

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
def test_batched_problems_equal_one_by_one(kind, random_model, tokenizer):
    """Verdicts equal, log-probabilities within 1e-4 of each row's whole logits in float64."""
    problems = written_problems(kind)
    together = evaluate_core_task(random_model, tokenizer, problems, task="t", chance=0.0)
    for problem, record in zip(problems, together.records, strict=True):
        rows = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in problem.prompts]
        spans = find_continuations(kind, rows, max_tokens=random_model.config.sequence_len)
        sums, means, is_greedy = [], [], []
        for span in spans:
            logits = np.array(random_model(mx.array([list(span.tokens)]))[0], dtype=np.float64)
            logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            scored = range(span.start, span.end)
            sums.append(sum(logprobs[j - 1, span.tokens[j]] for j in scored))
            means.append(sums[-1] / len(scored))
            is_greedy.append(all(int(logits[j - 1].argmax()) == span.tokens[j] for j in scored))
        assert record.logprobs == pytest.approx(sums, abs=1e-4)
        expected = is_greedy[0] if kind == "language_modeling" else int(np.argmax(means)) == problem.gold
        assert record.correct == expected
    assert any(record.is_truncated for record in together.records) == (random_model.config.sequence_len < 100)
