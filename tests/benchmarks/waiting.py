"""How long training steps of the quickstart wait for their batches, with tokens made on the fly or read from the cache.

    python tests/benchmarks/waiting.py [--steps 40]

Trains the recipe's model on its data, so the measured steps include whatever the loader's thread costs them. The first
batch waits until the packing buffer has 1,000 documents. Prints, for both ways, the time to open the data, the waiting
times and the step time, the fraction of time spent waiting, and that fraction over all steps of the recipe.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measuring import describe_machine, option_parser, training_step

from nanochat import runtime

CHOSEN = runtime.prepare(device="cpu")

import mlx.core as mx  # noqa: E402

from nanochat.data.documents import DocumentStream, single_pass  # noqa: E402
from nanochat.data.loaders.batches import BatchLoader  # noqa: E402
from nanochat.data.loaders.document_rows import Document, DocumentRows, DocumentRowsState  # noqa: E402
from nanochat.data.loaders.mixture import Stream  # noqa: E402
from nanochat.data.token_cache.cache import cached_stream  # noqa: E402
from nanochat.model.dispatch import FastGPT  # noqa: E402
from nanochat.plan.compile import compile_plan  # noqa: E402
from nanochat.plan.specs import PretrainSpec, TokenizerSpec  # noqa: E402
from nanochat.recipe.load import load_recipe  # noqa: E402
from nanochat.tokenizer import bpe  # noqa: E402
from nanochat.train.step import Rates  # noqa: E402

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


def measure(spec: PretrainSpec, loader: BatchLoader[DocumentRowsState], steps: int) -> tuple[list[float], list[float]]:
    """Return the seconds that each step waited for its batch, and the seconds that it computed."""
    rows = spec.tokens_per_step // spec.model.sequence_len
    step = training_step(FastGPT(spec.model), rows=rows, optimizer=spec.optimizer)
    waits, works = [], []
    for _ in range(steps):
        began = time.perf_counter()
        batch = loader.next()
        received = time.perf_counter()
        result = step.run(batch, rates=Rates(lr_multiplier=1.0, momentum=0.95, weight_decay=0.1))
        mx.eval(result.loss)
        waits.append(received - began)
        works.append(time.perf_counter() - received)
    return waits, works


def report(title: str, waits: list[float], works: list[float], steps: int) -> None:
    later_wait, work = sum(waits[1:]) / (len(waits) - 1), statistics.median(works)
    waiting = waits[0] + (steps - 1) * later_wait
    print(
        f"{title}: first batch {waits[0]:.2f} s, later ones {later_wait * 1e6:.0f} us each (longest "
        f"{max(waits[1:]) * 1e3:.1f} ms) against {work:.2f} s per step: {later_wait / (later_wait + work):.4%}; "
        f"with the first, {waiting / (waiting + steps * work):.2%} of the recipe's {steps} steps"
    )


def main() -> None:
    options = option_parser(__doc__, steps=40).parse_args()
    plan = compile_plan(load_recipe(RECIPE))
    spec, tokenizer_spec = plan.stage("pretrain").spec, plan.stage("tokenizer").spec
    assert isinstance(spec, PretrainSpec) and isinstance(tokenizer_spec, TokenizerSpec)
    print(f"{describe_machine(CHOSEN)}; {spec.model.num_parameters():,} parameters")
    with tempfile.TemporaryDirectory() as folder:
        base, source = Path(folder), spec.data[0].source
        limits = tokenizer_spec.model_dump(include={"vocab_size", "max_chars", "max_document_chars"})
        tokenizer = bpe.train(single_pass(source, "train", base=base), **limits)
        streams: dict[str, Callable[[], Stream[Document]]] = {
            "on the fly": lambda: DocumentStream(source, "train", base=base),
            "from the cache": lambda: cached_stream(source, "train", tokenizer, base=base),
        }
        for title, open_stream in streams.items():
            began = time.perf_counter()
            stream = open_stream()
            print(f"{title}: opened in {time.perf_counter() - began:.2f} s")
            length = spec.model.sequence_len
            rows = DocumentRows(
                [(stream, 1.0)],
                tokenizer,
                sequence_len=length,
                buffer_documents=spec.buffer_documents,
                long_documents=spec.long_documents,
            )
            loader = BatchLoader(rows, rows_per_batch=spec.tokens_per_step // length, pad_id=tokenizer.bos_id)
            assert spec.steps is not None, "the recipe has a horizon in steps or tokens"
            with contextlib.closing(loader):
                report(title, *measure(spec, loader, options.steps), spec.steps)


if __name__ == "__main__":
    main()
