"""Multiple-choice scoring on a CPU: batched, compared with one option at a time.

    python tests/benchmarks/batched_eval.py [--questions 64] [--rounds 5] [--text FOLDER]

"One at a time" runs the model on each option's whole row and computes all its logits. Both ways score the same
questions in alternation, and must choose the same options. The model has the quickstart's size and random weights.
Without `--text` the questions are random tokens with HellaSwag's lengths (context 30 to 150 tokens, four endings of 10
to 50). `--text` names a folder with HellaSwag's parquet file; a tokenizer of 2,048 pieces is trained on it.

Prints milliseconds per option of both ways in CPU time, and their ratio: the median over the rounds and its range.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from nanochat import runtime

if __name__ == "__main__":
    RUNTIME = runtime.prepare(device="cpu")  # before NumPy is imported, whose BLAS reads the same variables

import numpy as np

Rows = list[list[tuple[list[int], int]]]


def random_questions(count: int) -> Rows:
    generator = np.random.default_rng(0)

    def tokens(low: int, high: int) -> list[int]:
        return list(map(int, generator.integers(10, 2048, size=generator.integers(low, high))))

    questions = []
    for _ in range(count):
        context = [1, *tokens(30, 150)]
        questions.append([(context + tokens(10, 50), len(context)) for _ in range(4)])
    return questions


def hellaswag_questions(folder: Path, count: int) -> Rows:
    import pyarrow.parquet

    from nanochat.tokenizer import bpe

    rows = pyarrow.parquet.read_table(next(folder.glob("*.parquet"))).to_pylist()
    texts = [row["ctx"] + " " + ending for row in rows[:2000] for ending in row["endings"]]
    tokenizer = bpe.train(texts, vocab_size=2048, max_chars=2_000_000, max_document_chars=10_000)
    questions = []
    for row in rows[-count:]:
        context = [tokenizer.bos_id, *tokenizer.encode(row["ctx"])]
        options = [[tokenizer.bos_id, *tokenizer.encode(row["ctx"] + " " + end)] for end in row["endings"]]
        questions.append([(option, len(context)) for option in options])
    return questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text", type=Path)
    options = parser.parse_args()
    print(RUNTIME.describe())
    import mlx.core as mx

    from nanochat.evals.continuations import make_continuation, score_continuations
    from nanochat.model.config import GPTConfig
    from nanochat.model.dispatch import FastGPT

    model = FastGPT(GPTConfig(sequence_len=256, vocab_size=2048, n_layer=4, n_head=2, n_kv_head=2, n_embd=128))
    generator = np.random.default_rng(1)
    weights = model.named_parameters().items()
    model.set_parameters(
        {name: mx.array(generator.normal(scale=0.1, size=value.shape).astype(np.float32)) for name, value in weights}
    )
    mx.eval(model.named_parameters())
    questions = (
        hellaswag_questions(options.text, options.questions) if options.text else random_questions(options.questions)
    )
    groups = [[make_continuation(row, start, max_tokens=256) for row, start in rows] for rows in questions]
    tokens = sum(len(option.tokens) for group in groups for option in group)
    print(f"{len(groups)} questions, {tokens / len(groups) / 4:.0f} tokens per option")

    def score_one_at_a_time() -> list[list[float]]:
        scores = []
        for group in groups:
            sums = []
            for option in group:
                logits = model(mx.array([option.tokens[:-1]]))[0, option.start - 1 :]
                targets = mx.array(option.tokens[option.start :])[:, None]
                chosen = mx.take_along_axis(logits, targets, axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)
                sums.append(float(np.array(chosen, dtype=np.float64).sum()))
            scores.append(sums)
        return scores

    def score_batched() -> list[list[float]]:
        return [[score.logprob for score in scores] for scores in score_continuations(model, groups)]

    lengths = np.array([[option.length for option in group] for group in groups])

    def timed(work: Callable[[], list[list[float]]]) -> tuple[float, np.ndarray]:
        start = time.process_time()
        scores = work()
        return time.process_time() - start, np.array(scores)

    pairs = []
    for _ in range(options.rounds):
        slow, expected = timed(score_one_at_a_time)
        fast, scores = timed(score_batched)
        assert np.abs(scores - expected).max() < 1e-4, "the log-probabilities disagree"
        chosen = [(values / lengths).argmax(axis=-1) for values in (scores, expected)]
        assert (chosen[0] == chosen[1]).all(), "the two ways choose different options"
        pairs.append((slow, fast))
    ratios = [slow / fast for slow, fast in pairs]
    per_option = [1000 * statistics.median(side) / len(groups) / 4 for side in zip(*pairs, strict=True)]
    print(f"one at a time {per_option[0]:.2f} ms per option, batched {per_option[1]:.2f} ms (CPU time, median)")
    print(f"ratio {statistics.median(ratios):.1f} (rounds {min(ratios):.1f} to {max(ratios):.1f})")
    print(f"largest difference of a log-probability {np.abs(scores - expected).max():.1e}")


if __name__ == "__main__":
    main()
