"""How long training steps wait for their batches at the quickstart's size, tokens made on the fly or from the cache.

Run `python tests/benchmarks/waiting.py [--steps 40]`. Real steps of the recipe's model on its data: what the loader's
thread costs them is in their time. The first batch waits for the packing buffer of 1,000 documents to fill; its share
is of the whole recipe's steps, at the seconds per step that are measured here.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from nanochat import runtime

CHOSEN = runtime.prepare(device="cpu")

import mlx.core as mx  # noqa: E402

from nanochat.data.documents import DocumentStream, single_pass  # noqa: E402
from nanochat.data.loaders.pretrain import PretrainLoader  # noqa: E402
from nanochat.data.token_cache.cache import cached_stream  # noqa: E402
from nanochat.model.gpt import GPT  # noqa: E402
from nanochat.optim.groups import build_groups  # noqa: E402
from nanochat.optim.optimizer import Optimizer  # noqa: E402
from nanochat.plan.compile import compile_plan  # noqa: E402
from nanochat.plan.specs import PretrainSpec, TokenizerSpec  # noqa: E402
from nanochat.recipe.load import load_recipe  # noqa: E402
from nanochat.tokenizer import bpe  # noqa: E402
from nanochat.train.step import Rates, TrainStep  # noqa: E402

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


def measure(spec, loader, steps):
    """Return the seconds that each batch was waited for, and those that each step took."""
    model = GPT(spec.model)
    model.initialise(mx.random.key(0))
    groups = build_groups(spec.model, spec.optimizer, tokens_per_step=spec.tokens_per_step)
    rows = spec.tokens_per_step // spec.model.sequence_len
    step = TrainStep(
        model, Optimizer(groups, model.named_parameters()), micro_batch_size=rows, world=mx.distributed.init()
    )
    waits, works = [], []
    for _ in range(steps):
        began = time.perf_counter()
        batch = loader.next()
        asked = time.perf_counter()
        result = step.run(batch, rates=Rates(lr_multiplier=1.0, momentum=0.95, weight_decay=0.1))
        mx.eval(result.loss)
        waits.append(asked - began)
        works.append(time.perf_counter() - asked)
    return waits, works


def report(title, waits, works, steps):
    later, work = sum(waits[1:]) / (len(waits) - 1), statistics.median(works)
    whole = (waits[0] + (steps - 1) * later) / (waits[0] + (steps - 1) * later + steps * work)
    print(
        f"{title}: first batch {waits[0]:.2f} s, later ones {later * 1e6:.0f} us each (longest "
        f"{max(waits[1:]) * 1e3:.1f} ms) against {work:.2f} s a step: {later / (later + work):.4%}; "
        f"with the first, {whole:.2%} of the recipe's {steps} steps"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    plan = compile_plan(load_recipe(RECIPE))
    spec, asked = plan.stage("pretrain").spec, plan.stage("tokenizer").spec
    assert isinstance(spec, PretrainSpec) and isinstance(asked, TokenizerSpec)
    print(f"{CHOSEN.describe()}; MLX {mx.__version__}; {spec.model.num_parameters():,} parameters")
    with tempfile.TemporaryDirectory() as folder:
        base, source = Path(folder), spec.data[0].source
        tokenizer = bpe.train(
            single_pass(source, "train", base=base),
            vocab_size=asked.vocab_size,
            max_chars=asked.max_chars,
            max_document_chars=asked.max_document_chars,
        )
        streams = {
            "on the fly": lambda: DocumentStream(source, "train", base=base),
            "from the cache": lambda: cached_stream(source, "train", tokenizer, base=base),
        }
        for title, open_stream in streams.items():
            began = time.perf_counter()
            stream = open_stream()
            print(f"{title}: opened in {time.perf_counter() - began:.2f} s")
            loader = PretrainLoader(
                [(stream, 1.0)],
                tokenizer,
                sequence_len=spec.model.sequence_len,
                rows_per_batch=spec.tokens_per_step // spec.model.sequence_len,
                buffer_documents=spec.buffer_documents,
            )
            try:
                report(title, *measure(spec, loader, options.steps), spec.steps)
            finally:
                loader.close()


if __name__ == "__main__":
    main()
