"""Tasks of lm-evaluation-harness give the numbers that our own scoring of the same texts gives.

    NANOCHAT_TEST_DATA=../shared/data pytest -m lm_eval

The folder is that of `tests/tasks/test_real_data.py`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import StageError
from nanochat.evals.choice_tasks import evaluate_choices
from nanochat.evals.continuations import Continuation
from nanochat.inference.engine import Engine
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.tasks.multiple_choice.base_models import build_choice_items
from nanochat.tasks.table import TASKS
from nanochat.tokenizer import bpe

pytestmark = [pytest.mark.lm_eval, pytest.mark.filterwarnings("default")]
FOLDER = os.environ.get("NANOCHAT_TEST_DATA")
TASK_FILES = Path(__file__).parent / "tasks"
TOTAL = {"hellaswag": 7490, "arc_easy": 1792}
"""Rows of the files, of which both take the first ones of the same shuffle."""
PROBLEMS = 60
"""Real problems of each set."""


def spread_model(vocab_size: int) -> FastGPT:
    """Return a model with a short context and random weights of a size at which options differ by tens of nats."""
    config = GPTConfig(sequence_len=64, vocab_size=vocab_size, n_layer=2, n_head=2, n_kv_head=2, n_embd=32)
    gpt = FastGPT(config)
    generator = np.random.default_rng(0)
    gpt.set_parameters(
        {
            key: mx.array(generator.normal(size=value.shape, scale=0.5).astype(np.float32))
            for key, value in gpt.named_parameters().items()
        }
    )
    return gpt


@pytest.fixture(scope="module")
def model(tokenizer) -> FastGPT:
    return spread_model(tokenizer.vocab_size)


@pytest.fixture
def harness(model, tokenizer):
    from nanochat.evals.harness.language_model import HarnessModel

    return HarnessModel(Engine(model, tokenizer), max_rows=4)


def requests(*arguments):
    return [SimpleNamespace(args=pair) for pair in arguments]


def test_loglikelihoods_are_those_of_the_logits(harness, model, tokenizer, reference_score):
    pairs = [("the cat", " sat"), ("the cat", " on the mat"), ("", "the mat"), ("the ", "cat"), ("mat " * 90, " sat")]
    for pair, (logprob, is_greedy) in zip(pairs, harness.loglikelihood(requests(*pairs)), strict=True):
        ids, context = tokenizer.encode("".join(pair)), tokenizer.encode(pair[0])
        differ = (i for i, (a, b) in enumerate(zip(ids, context, strict=False)) if a != b)
        same = next(differ, min(len(ids), len(context)))
        row = [tokenizer.bos_id, *ids]
        lost = max(0, len(row) - model.config.sequence_len)
        expected, greedy = reference_score(model, Continuation(tuple(row[lost:]), max(1, 1 + same - lost)))
        assert logprob == pytest.approx(expected, abs=2e-3) and is_greedy == greedy
    assert harness.cut == {pairs[-1][0]}


def test_rolling_scores_every_token_once_in_windows_that_fill_the_context(harness, model, tokenizer):
    """The windows are those of the library's documentation: inputs of 64 tokens, and a last one that reaches back."""
    text = "the cat sat on the mat 0123456789 ABCD " * 9
    row = [tokenizer.bos_id, *tokenizer.encode(text)]
    assert len(row) > 2 * 64
    expected = 0.0
    for start in range(1, len(row), 64):
        end = min(start + 64, len(row))
        window = row[max(0, end - 65) : end]
        logits = np.array(model(mx.array([window[:-1]]))[0], dtype=np.float64)
        logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        for place in range(len(window) - (end - start), len(window)):
            expected += logprobs[place - 1, window[place]]
    assert harness.loglikelihood_rolling(requests((text,))) == [pytest.approx(expected, abs=2e-2)]


def test_generated_text_ends_before_the_first_stop_text(harness, model, tokenizer):
    whole, cut = harness.generate_until(
        requests(("the cat", {"until": [], "max_gen_toks": 12}), ("the cat", {"until": ["\0\0"], "max_gen_toks": 12}))
    )
    prompt = [tokenizer.bos_id, *tokenizer.encode("the cat")]
    (ids,) = Engine(model, tokenizer).complete([prompt], max_tokens=12, use_calculator=False)
    assert whole == cut == tokenizer.decode(ids) and len(whole) > 3
    stop = whole[2:4]
    assert harness.generate_until(requests(("the cat", {"until": ["never", stop], "max_gen_toks": 12}))) == [
        whole.split(stop)[0]
    ]


def write_task(folder: Path, **fields) -> Path:
    options = ["mat", "the cat sat", "on"]
    rows = [{"question": f"cat {number}?", "options": options, "gold": number % 3} for number in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "cats",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "gold",
        "doc_to_choice": "options",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        **fields,
    }
    (folder / "cats.yaml").write_text(json.dumps(config))  # JSON is YAML
    return folder / "cats.yaml"


def test_local_task_keeps_a_record_of_each_example(harness, tmp_path):
    from nanochat.evals.harness.run_tasks import load_tasks, run_tasks

    tasks = load_tasks(str(write_task(tmp_path)), num_fewshot=None, max_problems=4)
    measured = run_tasks(tasks, harness, metric="acc_norm")
    assert measured.result is not None
    records = measured.result.records
    assert [record.task for record in records] == ["cats"] * 4 and len({record.index for record in records}) == 4
    for record in records:
        lengths = [len("mat"), len("the cat sat"), len("on")]
        chosen = int(np.argmax(np.array(record.logprobs) / lengths))
        assert record.options == (" mat", " the cat sat", " on") and record.output == record.options[chosen]
        assert record.correct == (chosen == record.index % 3)
    assert measured.result.score.chance == pytest.approx(1 / 3)
    assert measured.metrics["acc_norm"] == pytest.approx(measured.result.score.accuracy)


@pytest.mark.parametrize(("name", "message"), [("no_such_task", "KeyError"), ("/none/task.yaml", "FileNotFoundError")])
def test_task_that_cannot_be_loaded_is_named(name, message):
    from nanochat.evals.harness.run_tasks import load_tasks

    with pytest.raises(StageError, match=f"lm_eval cannot load `{name}`: {message}"):
        load_tasks(name, num_fewshot=None, max_problems=None)


def test_unknown_metric_is_named_with_the_known_ones(harness, tmp_path):
    from nanochat.evals.harness.run_tasks import load_tasks, run_tasks

    tasks = load_tasks(str(write_task(tmp_path)), num_fewshot=None, max_problems=2)
    with pytest.raises(StageError, match="`cats` has no metric `f1`; its metrics are acc, acc_norm"):
        run_tasks(tasks, harness, metric="f1")


@pytest.mark.skipif(FOLDER is None, reason="NANOCHAT_TEST_DATA names no folder")
@pytest.mark.parametrize("name", ["hellaswag", "arc_easy"])
def test_library_and_our_own_suite_agree_on_every_example(name, tmp_path):
    """The prompts, options and log-probabilities are equal. The choices differ where the normalisations do."""
    from nanochat.evals.harness.language_model import HarnessModel
    from nanochat.evals.harness.run_tasks import load_tasks, run_tasks

    assert FOLDER is not None
    data = Path(FOLDER).absolute() / "eval" / name
    source = SourceSpec(name=name, path=(str(data),))
    items = build_choice_items(name, source, base=Path("unused"), max_problems=PROBLEMS)
    texts = [item.context + option for item in items for option in item.options]
    tokenizer = bpe.train(texts, vocab_size=512, max_chars=10**6, max_document_chars=10**4)
    model = spread_model(tokenizer.vocab_size)
    ours = evaluate_choices(model, tokenizer, items, task=name, chance=TASKS[name].chance).records
    config = (TASK_FILES / f"{name}.yaml").read_text().replace("FOLDER", str(data))
    (tmp_path / f"{name}.yaml").write_text(config)
    shutil.copy(TASK_FILES / "hellaswag_docs.py", tmp_path)
    tasks = load_tasks(str(tmp_path / f"{name}.yaml"), num_fewshot=None, max_problems=PROBLEMS)
    harness = HarnessModel(Engine(model, tokenizer), max_rows=4)
    measured = run_tasks(tasks, harness, metric="acc")
    order = list(range(TOTAL[name]))
    random.Random(1337).shuffle(order)
    theirs = sorted(measured.records, key=lambda record: order.index(record.index))
    assert len(ours) == len(theirs) == PROBLEMS
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.prompt, mine.options, mine.expected) == (other.prompt, other.options, other.expected)
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert other.output == other.options[int(np.argmax(mine.logprobs))], "lm-eval's acc: the largest sum"
    assert max(abs(np.ptp(record.logprobs)) for record in ours) > 10, "the options are far apart"
