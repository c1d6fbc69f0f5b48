"""Multiple-choice scoring: rows without padding, one question at a time, and one option at a time.

    python tests/benchmarks/choices.py [--device cpu|gpu] [--questions 64] [--rounds 5] [--text FOLDER]

On a CPU the model has the quickstart's size, and all ways score the same questions. On a GPU it has 286M parameters in
bfloat16, and the two slow ways score only the first 8 questions of a round. Weights and tokens are random, and every
round has new questions, as in an evaluation: cuDNN plans its attention for every new shape, which takes longer than
computing it. `--text` names a folder with HellaSwag's parquet file, whose questions replace the random ones; a
tokenizer of 2,048 pieces is trained on it.

Prints, for each shape of questions and each way, milliseconds per option (CPU time on a CPU, else wall clock; median
and range over the rounds) and the ratio to rows without padding within each round; then how far the log-probabilities
are from those of float32, one option at a time. On a CPU they must agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from parts.measuring import describe_machine, median_and_range, option_parser, seconds

from nanochat import runtime

if __name__ == "__main__":
    PARSER = option_parser(__doc__, questions=64, rounds=5)
    PARSER.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    PARSER.add_argument("--text", type=Path)
    OPTIONS = PARSER.parse_args()
    CHOSEN = runtime.prepare(device=OPTIONS.device)  # before NumPy is imported, whose BLAS reads the same variables

import mlx.core as mx
import numpy as np

from nanochat.evals.continuations import Continuation, make_continuation, score_continuations
from nanochat.model.config import GPTConfig
from nanochat.model.device import select_device
from nanochat.model.dispatch import FastGPT

FEW = 8
SHAPES = {
    "context 30 to 150, endings 10 to 50 (as HellaSwag's)": ((30, 150), (10, 50)),
    "context 60 to 250, endings of 1 (letters)": ((60, 250), (1, 2)),
    "context 500 to 900, endings 10 to 50 (few-shot)": ((500, 900), (10, 50)),
}
Questions = list[list[Continuation]]


def random_model(config: GPTConfig, dtype: mx.Dtype) -> FastGPT:
    """Return a model with random weights whose hidden states are about as large as after training."""
    model = FastGPT(config)
    shapes = config.parameter_shapes()
    keys = mx.random.split(mx.random.key(7), len(shapes))
    drawn = {
        name: mx.random.normal(shape, scale=shape[-1] ** -0.5 if len(shape) == 2 else 0.3, key=key)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    drawn["resid_lambdas"] += 1
    model.set_parameters(drawn)
    model.set_compute_dtype(dtype)
    if dtype != mx.float32:
        model.cast_matrices(dtype)
    mx.eval(model.named_parameters())
    return model


def random_questions(vocab_size: int, shape: tuple[tuple[int, int], tuple[int, int]]) -> Iterator[list[Continuation]]:
    draw = np.random.default_rng(0)

    def tokens(low: int, high: int) -> list[int]:
        return list(map(int, draw.integers(10, vocab_size, size=draw.integers(low, high))))

    while True:
        context = [1, *tokens(*shape[0])]
        yield [make_continuation(context + tokens(*shape[1]), len(context), max_tokens=None) for _ in range(4)]


def hellaswag_questions(folder: Path) -> Iterator[list[Continuation]]:
    import pyarrow.parquet

    from nanochat.tokenizer import bpe

    rows = pyarrow.parquet.read_table(next(folder.glob("*.parquet"))).to_pylist()
    texts = [row["ctx"] + " " + ending for row in rows[:2000] for ending in row["endings"]]
    tokenizer = bpe.train(texts, vocab_size=2048, max_chars=2_000_000, max_document_chars=10_000)
    for row in reversed(rows):
        start = 1 + len(tokenizer.encode(row["ctx"]))
        options = [[tokenizer.bos_id, *tokenizer.encode(row["ctx"] + " " + end)] for end in row["endings"]]
        yield [make_continuation(option, start, max_tokens=256) for option in options]


def without_padding(model: FastGPT, questions: Questions) -> list[float]:
    return [score.logprob for scores in score_continuations(model, questions) for score in scores]


def question_at_a_time(model: FastGPT, questions: Questions) -> list[float]:
    """Score the padded options of a question in one pass, with logits at scored positions only."""
    scores = []
    for question in questions:
        idx = np.ones((len(question), max(len(option.tokens) for option in question) - 1), dtype=np.int32)
        for row, option in zip(idx, question, strict=True):
            row[: len(option.tokens) - 1] = option.tokens[:-1]
        hidden = model.hidden(mx.array(idx))
        places = [(row, j - 1) for row, option in enumerate(question) for j in range(option.start, len(option.tokens))]
        rows, columns = mx.array(places).T
        targets = mx.array([token for option in question for token in option.tokens[option.start :]])
        logprobs = np.array(model.target_logprobs(hidden[rows, columns], targets)[0], dtype=np.float64)
        ends = np.cumsum([option.length for option in question])[:-1]
        scores += [float(part.sum()) for part in np.split(logprobs, ends)]
    return scores


def option_at_a_time(model: FastGPT, questions: Questions) -> list[float]:
    scores = []
    for option in (option for question in questions for option in question):
        logits = model(mx.array([option.tokens[:-1]]))[0, option.start - 1 :]
        targets = mx.array(option.tokens[option.start :])[:, None]
        chosen = mx.take_along_axis(logits, targets, axis=-1)[:, 0] - mx.logsumexp(logits, axis=-1)
        scores.append(float(np.array(chosen, dtype=np.float64).sum()))
    return scores


WAYS: tuple[Callable[[FastGPT, Questions], list[float]], ...] = (without_padding, question_at_a_time, option_at_a_time)


def measure(source: Iterator[list[Continuation]], model: FastGPT, exact: FastGPT) -> None:
    """Print the speed of each way on new questions, and its differences from float32."""
    on_cpu = CHOSEN.backend == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    times: dict[str, list[float]] = {way.__name__: [] for way in WAYS}
    differences: dict[str, list[float]] = {way.__name__: [] for way in WAYS}
    for i in range(OPTIONS.rounds + 1):
        questions = [next(source) for _ in range(OPTIONS.questions)]
        expected = np.array(option_at_a_time(exact, questions[:FEW]))
        for way in WAYS:
            asked = questions if on_cpu or way is without_padding else questions[:FEW]
            scores: list[float] = []
            elapsed = seconds(lambda way=way, asked=asked, scores=scores: scores.extend(way(model, asked)), clock=clock)  # type: ignore[misc]
            if i:  # the first round compiles the kernels
                times[way.__name__].append(1e3 * elapsed / sum(map(len, asked)))
            differences[way.__name__] += np.abs(np.array(scores[: len(expected)]) - expected).tolist()
    for name, values in times.items():
        ratios = [value / own for value, own in zip(values, times["without_padding"], strict=True)]
        error = f"{np.mean(differences[name]):.1e} nats from float32 on average, {max(differences[name]):.1e} at most"
        print(f"  {name}: {median_and_range(values, 3)}, {median_and_range(ratios, 1)}x; {error}", flush=True)
        assert not on_cpu or max(differences[name]) < 1e-4, "the log-probabilities disagree"


def main() -> None:
    select_device(CHOSEN.backend)
    on_cpu = CHOSEN.backend == "cpu"
    small = GPTConfig(sequence_len=256, vocab_size=2048, n_layer=4, n_head=2, n_kv_head=2, n_embd=128)
    config = small if on_cpu else GPTConfig(sequence_len=2048)
    model = random_model(config, mx.bfloat16 if CHOSEN.dtype == "bfloat16" else mx.float32)
    exact = random_model(config, mx.float32)
    print(f"{describe_machine(CHOSEN)}; {config.num_parameters():,} parameters")
    sources = {title: random_questions(config.vocab_size, shape) for title, shape in SHAPES.items()}
    if OPTIONS.text:
        sources = {"HellaSwag": hellaswag_questions(OPTIONS.text)}
    elif on_cpu:
        del sources["context 500 to 900, endings 10 to 50 (few-shot)"]  # longer than the small model's context
    for title, source in sources.items():
        print(f"\n{title}, ms per option:")
        measure(source, model, exact)


if __name__ == "__main__":
    main()
