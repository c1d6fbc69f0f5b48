"""How long training steps wait for their batches, with tokens made on the fly or read from the cache.

    python tests/benchmarks/waiting.py [--recipe quickstart] [--set KEY=VALUE ...] [--device cpu|gpu] [--steps 40]
                                       [--rows 16] [--processes 8]

Trains the recipe's model on its data, so the measured steps include whatever the loader's thread costs them. The first
batch waits until the packing buffer has 1,000 documents. Prints, for both ways, the time to open the data, the waiting
times and the step time, the fraction of time spent waiting, and that fraction over all steps of the recipe. On a GPU a
forward pass has `--rows` rows, and a step is built while the one before it is computed, as in training.

With `--processes`, so many loaders, each of one rank of a run of this size, work at the same time without training.
Every rank tokenizes all the documents. Prints the tokens of whole batches that the slowest makes per second, and per
second of CPU time: a run of this many processes cannot train faster.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from parts.measuring import describe_machine, option_parser, training_step

from nanochat import runtime


def _options() -> argparse.Namespace:
    parser = option_parser(__doc__, steps=40, rows=16, processes=0)
    parser.add_argument("--recipe", type=Path, default=Path("quickstart"))
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)  # of a process that only loads
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)  # where its tokenizer and caches are
    return parser.parse_args()


OPTIONS = _options()
CHOSEN = runtime.prepare(device=OPTIONS.device, trains=True)

import mlx.core as mx  # noqa: E402

from nanochat.data.documents import DocumentStream, single_pass  # noqa: E402
from nanochat.data.loaders.batches import BatchLoader  # noqa: E402
from nanochat.data.loaders.document_rows import Document, DocumentRows, DocumentRowsState  # noqa: E402
from nanochat.data.loaders.stream_mixture import Stream  # noqa: E402
from nanochat.data.token_cache.cache import cached_stream  # noqa: E402
from nanochat.model.device import select_device  # noqa: E402
from nanochat.model.dispatch import FastGPT  # noqa: E402
from nanochat.plan.compile import compile_plan  # noqa: E402
from nanochat.plan.specs.training import PretrainSpec, TokenizerSpec  # noqa: E402
from nanochat.recipe.load import load_recipe  # noqa: E402
from nanochat.tokenizer import bpe  # noqa: E402
from nanochat.train.step import Rates  # noqa: E402


def measure(spec: PretrainSpec, loader: BatchLoader[DocumentRowsState]) -> tuple[list[float], list[float]]:
    """Return the seconds that each step waited for its batch, and the seconds from then to the next wait."""
    on_gpu = CHOSEN.backend != "cpu"
    rows = spec.tokens_per_step // spec.model.sequence_len
    pass_rows = min(OPTIONS.rows, rows) if on_gpu else rows
    model = FastGPT(spec.model)
    step = training_step(model, rows=rows, micro_batch_size=pass_rows, dtype=CHOSEN.dtype, optimizer=spec.optimizer)
    waits, works = [], []
    for _ in range(OPTIONS.steps):
        began = time.perf_counter()
        batch = loader.next()
        received = time.perf_counter()
        result = step.run(batch, rates=Rates(lr_multiplier=0.1, momentum=0.95, weight_decay=0.1))
        if not on_gpu:
            mx.eval(result.loss)
        waits.append(received - began)
        works.append(time.perf_counter() - received)
    mx.eval(result.loss)
    return waits, works


def load(spec: PretrainSpec, loader: BatchLoader[DocumentRowsState], title: str) -> None:
    """Print the tokens of whole batches per second and per second of CPU time, without training."""
    loader.next()
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(OPTIONS.steps):
        loader.next()
    elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    tokens = OPTIONS.steps * spec.tokens_per_step / 1e6
    print(f"{title}: {tokens / elapsed:.2f} M tokens/s, {tokens / cpu:.2f} M tokens per CPU second", flush=True)


def report(title: str, waits: list[float], works: list[float], steps: int) -> None:
    later_wait, work = sum(waits[1:]) / (len(waits) - 1), statistics.median(works)
    waiting = waits[0] + (steps - 1) * later_wait
    print(
        f"{title}: first batch {waits[0]:.2f} s, later ones {later_wait * 1e6:.0f} us each (longest "
        f"{max(waits[1:]) * 1e3:.1f} ms) against {work:.2f} s per step: {later_wait / (later_wait + work):.4%}; "
        f"with the first, {waiting / (waiting + steps * work):.2%} of the recipe's {steps} steps"
    )


def loader_of(spec: PretrainSpec, stream: Stream[Document], tokenizer: bpe.Tokenizer) -> BatchLoader[DocumentRowsState]:
    length, world = spec.model.sequence_len, max(1, OPTIONS.processes)
    rows = DocumentRows(
        [(stream, 1.0)],
        tokenizer,
        sequence_len=length,
        buffer_documents=spec.buffer_documents,
        long_documents=spec.long_documents,
    )
    return BatchLoader(
        rows,
        rows_per_batch=spec.tokens_per_step // length // world,
        pad_id=tokenizer.bos_id,
        rank=OPTIONS.rank or 0,
        world_size=world,
    )


def run_both_ways(spec: PretrainSpec, tokenizer: bpe.Tokenizer, base: Path) -> None:
    source = spec.data[0].source
    streams: dict[str, Callable[[], Stream[Document]]] = {
        "on the fly": lambda: DocumentStream(source, "train", base=base),
        "from the cache": lambda: cached_stream(source, "train", tokenizer, base=base),
    }
    for title, open_stream in streams.items():
        began = time.perf_counter()
        stream = open_stream()
        if OPTIONS.rank is None:
            print(f"{title}: opened in {time.perf_counter() - began:.2f} s")
        with contextlib.closing(loader_of(spec, stream, tokenizer)) as loader:
            if OPTIONS.rank is not None:
                load(spec, loader, f"rank {OPTIONS.rank} {title}")
                continue
            assert spec.steps is not None, "the recipe has a horizon in steps or tokens"
            report(title, *measure(spec, loader), spec.steps)


def run_loaders(base: Path) -> None:
    """Load on all ranks at the same time, each in a process of its own."""
    command = [sys.executable, *sys.argv, "--device", "cpu", "--base", str(base)]
    loaders = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(OPTIONS.processes)]
    for loader in loaders:
        loader.wait()


def main() -> None:
    select_device(CHOSEN.backend)
    plan = compile_plan(load_recipe(OPTIONS.recipe, OPTIONS.settings))
    spec, tokenizer_spec = plan.stage("pretrain").spec, plan.stage("tokenizer").spec
    assert isinstance(spec, PretrainSpec) and isinstance(tokenizer_spec, TokenizerSpec)
    if OPTIONS.rank is not None:
        tokenizer = bpe.Tokenizer.load(OPTIONS.base / "tokenizer")
        run_both_ways(spec, tokenizer, OPTIONS.base)
        return
    print(f"{describe_machine(CHOSEN)}; {spec.model.num_parameters():,} parameters")
    with tempfile.TemporaryDirectory() as folder:
        base, source = Path(folder), spec.data[0].source
        limits = tokenizer_spec.model_dump(include={"vocab_size", "max_chars", "max_document_chars"})
        tokenizer = bpe.train(single_pass(source, "train", base=base), **limits)
        (base / "tokenizer").write_bytes(tokenizer.model)
        if OPTIONS.processes:
            cached_stream(source, "train", tokenizer, base=base)  # so that no rank waits for it
            run_loaders(base)
        else:
            run_both_ways(spec, tokenizer, base)


if __name__ == "__main__":
    main()
