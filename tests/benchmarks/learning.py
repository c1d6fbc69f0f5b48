"""Whether a small model learns as well at the default learning rates as at half and at twice those rates.

    python tests/benchmarks/learning.py --text DIR [--device gpu] [--seeds 3] [--steps 60 200] [--fault] [--unscaled]

DIR holds parquet shards, one of which is held out. The model has 4 layers, width 256 and vocabulary 4,096; a step has 8
rows of 256 tokens; float32, constant rates, no weight decay. Both architectures are trained, each with its optimizer. A
seed decides the initial weights and the order of rows.

Prints held-out bits per byte (mean and standard deviation over the seeds) at each multiple of the rates, and exits with
1 if the default is worse than a neighbour by more than 1 %. Norms hide a Muon step that is far too large: the loss is
then equally bad at half and at twice the rate. So the default must also hold against Muon at 1/16 and 1/256 of its rate
(one seed).

`--fault` plants an error that a port of nanochat had: the norm is not restored after variance reduction, and steps are
larger by sqrt(cols). It prints the cost of the error; the exit code should be 1. Default rates are scaled with the
batch (`optim.groups.batch_scale`), here by a half (`plain`) and a quarter (`current`); `--unscaled` leaves that out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from parts.measuring import option_parser, training_step

from nanochat import runtime

if TYPE_CHECKING:  # NumPy and MLX are imported after `runtime.prepare`
    from nanochat.data.loaders.batches import Batch
    from nanochat.data.packing.document_packer import IntArray
    from nanochat.data.sources.source_spec import SourceSpec
    from nanochat.model.architectures import Architecture
    from nanochat.optim.groups import Variant
    from nanochat.optim.optimizer import Optimizer
    from nanochat.tokenizer.bpe import Tokenizer
    from nanochat.train.step import NamedArrays, Rates

SCALES = (0.5, 1.0, 2.0)
MUON_SCALES = (1 / 16, 1 / 256)
TOLERANCE = 0.01
SEQUENCE_LEN, ROWS = 256, 8
VOCAB_SIZE = 4096
MUON_LR = 0.02  # in both variants
TOKENIZER_CHARS = 20_000_000
VARIANTS: dict[Architecture, Variant] = {"seed": "plain", "current": "current"}
"""The optimizer that belongs to each architecture."""


def main() -> int:
    parser = option_parser(__doc__, validation_tokens=2**17, seeds=3)
    parser.add_argument("--text", type=Path, required=True, help="folder of parquet shards with a column `text`")
    parser.add_argument("--validation-shard", default="shard_00004.parquet", help="the shard that is held out")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[60, 200], help="steps at which bits per byte are measured"
    )
    parser.add_argument("--architectures", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--unscaled", action="store_true", help="do not scale the rates with the batch")
    parser.add_argument("--fault", action="store_true", help="plant a Muon step of the wrong size")
    options = parser.parse_args()
    options.steps.sort()
    chosen = runtime.prepare(device=options.device, dtype="float32")
    from nanochat.model.device import device_name, select_device

    select_device(chosen.backend)
    began = time.monotonic()
    data = _read_data(options)
    print(f"{device_name()}, {chosen.describe()}; tokenizer and data in {time.monotonic() - began:.0f} s", flush=True)
    is_good = True
    for architecture in options.architectures:
        if options.fault:
            correct = _Bench(architecture, data, options).measure(1.0, range(options.seeds))
            with _wrong_step():
                is_good &= _report(architecture, data, options, reference=correct)
        else:
            is_good &= _report(architecture, data, options, reference=None)
    print(f"{time.monotonic() - began:.0f} s in total")
    return 0 if is_good else 1


@dataclass(frozen=True)
class _Data:
    """Rows to train on, held-out batches, and the bytes of each token."""

    inputs: IntArray  # (N, T), like the targets
    targets: IntArray
    held_out: Sequence[Batch]
    token_bytes: IntArray
    vocab_size: int


@dataclass(frozen=True)
class _Measure:
    """Held-out bits per byte and nats per token of one seed, by the number of steps trained."""

    bpb: dict[int, float]
    nats: dict[int, float]


def _read_data(options: argparse.Namespace) -> _Data:
    import numpy as np

    from nanochat.data.documents import DocumentStream
    from nanochat.data.loaders.batches import BatchLoader
    from nanochat.data.loaders.document_rows import DocumentRows
    from nanochat.data.sources.source_spec import SourceSpec
    from nanochat.stages.suites.held_out_text import held_out_batches

    base = Path(tempfile.gettempdir()) / "nanochat-learning"
    source = SourceSpec(name="text", path=(str(options.text / "*.parquet"),), validation_shard=options.validation_shard)
    tokenizer = _tokenizer(source, base)
    rows = DocumentRows(
        [(DocumentStream(source, "train", base=base), 1.0)],
        tokenizer,
        sequence_len=SEQUENCE_LEN,
        buffer_documents=1000,
        long_documents="crop",  # the seed's rule
    )
    loader = BatchLoader(rows, rows_per_batch=ROWS, pad_id=tokenizer.bos_id)
    # Twice as many rows as a run needs, so that seeds differ in their data.
    batches = [loader.next() for _ in range(2 * options.steps[-1])]
    loader.close()
    size = {"sequence_len": SEQUENCE_LEN, "max_tokens": options.validation_tokens, "rows_per_batch": 64}
    held_out = held_out_batches(source, "validation", tokenizer, base=base, **size)
    inputs = np.concatenate([batch.inputs for batch in batches])
    targets = np.concatenate([batch.targets for batch in batches])
    return _Data(inputs, targets, held_out, tokenizer.token_bytes, tokenizer.vocab_size)


def _tokenizer(source: SourceSpec, base: Path) -> Tokenizer:
    """Return the tokenizer for these files. It is trained once and then cached."""
    from nanochat.data.documents import single_pass
    from nanochat.data.sources.source_contents import digest
    from nanochat.tokenizer import bpe

    folder = base / "tokenizers" / digest(source, base=base)[:16]
    if not folder.exists():
        texts = single_pass(source, "train", base=base)
        trained = bpe.train(texts, vocab_size=VOCAB_SIZE, max_chars=TOKENIZER_CHARS, max_document_chars=10_000)
        trained.save(folder)
    return bpe.Tokenizer.load(folder)


class _Bench:
    """One architecture and its optimizer, compiled once and reset for every run."""

    def __init__(
        self, architecture: Architecture, data: _Data, options: argparse.Namespace, *, muon_scale: float = 1.0
    ) -> None:
        from nanochat.model.config import GPTConfig
        from nanochat.model.dispatch import FastGPT
        from nanochat.optim.groups import REFERENCE_TOKENS_PER_STEP, OptimizerConfig
        from nanochat.optim.schedules import ScheduleConfig, muon_momentum
        from nanochat.train.step import Rates

        self.data, self.steps = data, options.steps
        variant = VARIANTS[architecture]
        shape = GPTConfig.from_depth(4)  # width 256
        config = replace(shape, architecture=architecture, sequence_len=SEQUENCE_LEN, vocab_size=data.vocab_size)
        rows = REFERENCE_TOKENS_PER_STEP[variant] // SEQUENCE_LEN if options.unscaled else ROWS
        optimizer = OptimizerConfig(variant=variant, matrix_lr=MUON_LR * muon_scale)
        self.step = training_step(FastGPT(config), rows=rows, micro_batch_size=ROWS, optimizer=optimizer)
        schedule = ScheduleConfig(steps=self.steps[-1], kind="constant")
        self.rates: Callable[[float, int], Rates] = lambda scale, step: Rates(
            lr_multiplier=scale, momentum=muon_momentum(variant, step, schedule), weight_decay=0.0
        )

    def measure(self, scale: float, seeds: Sequence[int]) -> list[_Measure]:
        """Return one measurement per seed, with all rates multiplied by `scale`."""
        return [self._run(scale, seed) for seed in seeds]

    def _run(self, scale: float, seed: int) -> _Measure:
        import mlx.core as mx
        import numpy as np

        from nanochat.data.loaders.batches import Batch
        from nanochat.evals.bits_per_byte import evaluate_bpb

        self.step.model.initialise(mx.random.key(seed))
        zeros = {name: mx.zeros_like(value) for name, value in self.step.optimizer.state.items()}
        self.step.optimizer.load_state(zeros)
        order = np.random.default_rng(seed).permutation(len(self.data.inputs))
        bpb: dict[int, float] = {}
        nats: dict[int, float] = {}
        for done in range(self.steps[-1]):
            rows = order[done * ROWS : (done + 1) * ROWS]
            batch = Batch(self.data.inputs[rows], self.data.targets[rows])
            self.step.run(batch, rates=self.rates(scale, done))
            if done + 1 in self.steps:
                result = evaluate_bpb(self.step.model, self.data.held_out, self.data.token_bytes)
                bpb[done + 1], nats[done + 1] = result.bpb, result.nats / result.tokens
        return _Measure(bpb, nats)


def _report(
    architecture: Architecture, data: _Data, options: argparse.Namespace, *, reference: list[_Measure] | None
) -> bool:
    """Measure at every scale, print the table, and return whether the default is good enough."""
    name = f"architecture {architecture}, optimizer {VARIANTS[architecture]}"
    print(f"{name}{', WRONG MUON STEP' if options.fault else ''}: held-out bits per byte")
    bench, at = _Bench(architecture, data, options), {}
    for scale in SCALES:
        at[scale] = _measure_and_show(f"rates x{scale}", bench, scale, range(options.seeds))
    verdicts = [_compare(f"default, {n} steps", n, at[1.0], (at[0.5], at[2.0])) for n in options.steps]
    slow = [
        _measure_and_show(f"Muon's x{scale}", _Bench(architecture, data, options, muon_scale=scale), 1.0, range(1))
        for scale in MUON_SCALES
    ]
    verdicts += [_compare(f"Muon's default, {n} steps", n, at[1.0][:1], slow) for n in options.steps]
    for n in options.steps:
        if reference is None:
            break
        cost = statistics.mean(m.nats[n] for m in at[1.0]) - statistics.mean(m.nats[n] for m in reference)
        print(f"  {n} steps: the wrong step costs {cost:+.3f} nats per token at the default rates")
    return all(verdicts)


def _measure_and_show(title: str, bench: _Bench, scale: float, seeds: Sequence[int]) -> list[_Measure]:
    began = time.monotonic()
    measures = bench.measure(scale, seeds)
    columns = "   ".join(f"{n} steps: {_mean_and_deviation([m.bpb[n] for m in measures])}" for n in bench.steps)
    print(f"  {title:<18} {columns}   ({time.monotonic() - began:.1f} s)", flush=True)
    return measures


def _compare(title: str, steps: int, default: list[_Measure], others: Sequence[list[_Measure]]) -> bool:
    """Print and return whether the default's mean is within the tolerance of the best of the others."""
    best = min(statistics.mean(m.bpb[steps] for m in measures) for measures in others)
    excess = statistics.mean(m.bpb[steps] for m in default) / best - 1
    is_good = excess <= TOLERANCE
    print(f"  {title}: {'ok' if is_good else 'WORSE'}, {excess:+.2%} against the best of the others", flush=True)
    return is_good


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} +- {deviation:.4f}"


@contextmanager
def _wrong_step() -> Iterator[None]:
    """Plant the error: steps with elements of size sqrt(cols) instead of max(rows, cols)^-0.5 (root mean square)."""
    from nanochat.optim.groups import MuonGroup
    from nanochat.optim.optimizer import Optimizer

    correct_update = Optimizer.update

    def wrong(self: Optimizer, parameters: NamedArrays, gradients: NamedArrays, **rates: Any) -> NamedArrays:
        updated = correct_update(self, parameters, gradients, **rates)
        for name in (name for group in self.groups if isinstance(group, MuonGroup) for name in group.names):
            rows, cols = updated[name].shape
            factor = (max(rows, cols) * cols) ** 0.5
            updated[name] = parameters[name] + factor * (updated[name] - parameters[name])
        return updated

    with mock.patch.object(Optimizer, "update", wrong):
        yield


if __name__ == "__main__":
    sys.exit(main())
