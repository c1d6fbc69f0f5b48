"""Multiple-choice scoring on a GPU at the real size: rows without padding, one question and one option at a time.

    python tests/benchmarks/gpu_choices.py [--questions 128] [--rounds 3]

286M parameters in bfloat16 with random weights, and random tokens in three shapes of questions. Every timed question is
new, as in an evaluation: cuDNN plans its attention for every new shape, which takes longer than computing it. The two
slow ways score only 8 questions per round.

Prints, for each shape and way, milliseconds per option (wall clock, median and range over the rounds) and the ratio to
rows without padding; then how far the log-probabilities are from those of float32, one option at a time.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np

from nanochat import runtime

CHOSEN = runtime.prepare()

import mlx.core as mx  # noqa: E402

from nanochat.evals.continuations import Continuation, make_continuation, score_continuations  # noqa: E402
from nanochat.model.config import GPTConfig  # noqa: E402
from nanochat.model.device import device_name, select_device  # noqa: E402
from nanochat.model.dispatch import FastGPT  # noqa: E402

CONFIG = GPTConfig(sequence_len=2048)
OPTIONS, FEW = 4, 8
SHAPES = {
    "context 30 to 150, endings 10 to 50 (as HellaSwag's)": ((30, 150), (10, 50)),
    "context 60 to 250, endings of 1 (letters)": ((60, 250), (1, 2)),
    "context 500 to 900, endings 10 to 50 (few-shot)": ((500, 900), (10, 50)),
}
Questions = list[list[Continuation]]
DRAW = np.random.default_rng(0)


def random_model(dtype: mx.Dtype) -> FastGPT:
    """Return a model with random weights whose hidden states are about as large as after training."""
    model = FastGPT(CONFIG)
    shapes = CONFIG.parameter_shapes()
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


def draw_questions(count: int, shape: tuple[tuple[int, int], tuple[int, int]]) -> Questions:
    def tokens(low: int, high: int) -> list[int]:
        return list(map(int, DRAW.integers(10, CONFIG.vocab_size, size=DRAW.integers(low, high))))

    questions = []
    for _ in range(count):
        context = [1, *tokens(*shape[0])]
        rows = [context + tokens(*shape[1]) for _ in range(OPTIONS)]
        questions.append([make_continuation(row, len(context), max_tokens=None) for row in rows])
    return questions


def ragged(model: FastGPT, questions: Questions) -> list[float]:
    return [score.logprob for scores in score_continuations(model, questions) for score in scores]


def question_at_a_time(model: FastGPT, questions: Questions) -> list[float]:
    """Score the padded options of a question in one pass, with logits at scored positions only."""
    scores = []
    for question in questions:
        idx = np.ones((OPTIONS, max(len(option.tokens) for option in question) - 1), dtype=np.int32)
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
        scores.append(float(chosen.sum()))
    return scores


def milliseconds(way: Callable[[FastGPT, Questions], list[float]], model: FastGPT, questions: Questions) -> float:
    """Return wall-clock milliseconds per option."""
    began = time.perf_counter()
    way(model, questions)
    return 1e3 * (time.perf_counter() - began) / len(questions) / OPTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    select_device(CHOSEN.backend)
    model, exact = random_model(mx.bfloat16), random_model(mx.float32)
    today = datetime.date.today().isoformat()
    print(f"{today}; {device_name()}; MLX {version('mlx')}; {CHOSEN.describe()}; {CONFIG.num_parameters():,} weights")
    ways = {ragged: options.questions, question_at_a_time: FEW, option_at_a_time: FEW}
    for title, shape in SHAPES.items():
        for way in ways:
            way(model, draw_questions(FEW, shape))  # compiles the kernels
        times = {
            way: [milliseconds(way, model, draw_questions(count, shape)) for _ in range(options.rounds)]
            for way, count in ways.items()
        }
        print(f"\n{title}, ms per option:")
        own = statistics.median(times[ragged])
        for way, values in times.items():
            median = statistics.median(values)
            print(
                f"  {way.__name__}: {median:.3f} ({min(values):.3f} to {max(values):.3f}), {median / own:.0f}x",
                flush=True,
            )
        questions = draw_questions(FEW, shape)
        expected = np.array(option_at_a_time(exact, questions))
        for way in ways:
            differences = np.abs(np.array(way(model, questions)) - expected)
            mean, largest = differences.mean(), differences.max()
            print(f"  {way.__name__}: {mean:.3f} nats from float32 on average, {largest:.3f} at most", flush=True)


if __name__ == "__main__":
    main()
