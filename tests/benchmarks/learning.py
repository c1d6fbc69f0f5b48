"""Does a small model learn at the default learning rates as well as at half and at twice them?

Run: python tests/benchmarks/learning.py --text DIR [--device gpu] [--seeds 3] [--steps 60 200] [--fault]. DIR holds
parquet shards, one of which is kept for validation. 4 layers, width 256, vocabulary 4,096, 8 rows of 256 tokens a step,
float32, constant rates, no weight decay; both pairs of architecture and optimizer. Prints held-out bits per byte, mean
and standard deviation over the seeds, and exits with 1 where the default is worse than a neighbour by more than 1 %.

A seed decides the first weights and which rows come when. `--fault` multiplies Muon's step by sqrt(cols), as a port of
nanochat once did: what that costs against the sound rule is printed, and the exit code should be 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from nanochat import runtime

SCALES = (0.5, 1.0, 2.0)
TOLERANCE = 0.01
SEQUENCE_LEN, ROWS = 256, 8
VOCAB_SIZE = 4096
TOKENIZER_CHARS = 20_000_000
VARIANTS = {"seed": "plain", "current": "current"}
"""Architecture -> optimizer."""


def main() -> int:
    """Train everything, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of parquet shards with a column `text`")
    parser.add_argument("--validation-shard", default="shard_00004.parquet", help="the shard that is not trained on")
    parser.add_argument("--validation-tokens", type=int, default=2**17)
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 200], help="where a run is measured")
    parser.add_argument("--architectures", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--fault", action="store_true", help="multiply Muon's step by sqrt(cols)")
    options = parser.parse_args()
    options.steps.sort()
    chosen = runtime.prepare(device=options.device, dtype="float32")
    import mlx.core as mx

    from nanochat.model.device import device_name

    mx.set_default_device(mx.Device(mx.cpu if chosen.backend == "cpu" else mx.gpu))
    began = time.monotonic()
    data = _read_data(options)
    print(f"{device_name()}, {chosen.describe()}; tokenizer and data in {time.monotonic() - began:.0f} s", flush=True)
    is_sound = True
    for architecture in options.architectures:
        bench = _Bench(architecture, data, options.steps)
        if options.fault:
            sound = bench.measure(1.0, range(options.seeds))
            with _wrong_step():
                wrong = _Bench(architecture, data, options.steps)
                is_sound &= _report(wrong, options, against=sound)
        else:
            is_sound &= _report(bench, options, against=None)
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0 if is_sound else 1


@dataclass(frozen=True)
class _Data:
    """Rows to train on, inputs and targets; held-out batches; bytes of each token."""

    inputs: object  # (N, T) int32; arrays of numpy, which is imported after the runtime is ready
    targets: object
    held_out: Sequence[object]
    token_bytes: object
    vocab_size: int


@dataclass(frozen=True)
class _Measure:
    """Held-out bits per byte and nats per token, by number of steps, of one seed."""

    bpb: dict[int, float]
    nats: dict[int, float]


def _read_data(options: argparse.Namespace) -> _Data:
    import numpy as np

    from nanochat.data.documents import iter_documents
    from nanochat.data.loader import PretrainLoader
    from nanochat.data.sources import SourceSpec
    from nanochat.stages.heldout import held_out_batches

    base = Path(tempfile.gettempdir()) / "nanochat-learning"
    source = SourceSpec(name="text", path=(str(options.text / "*.parquet"),), validation_shard=options.validation_shard)
    tokenizer = _tokenizer(source, base)
    loader = PretrainLoader(
        [(iter_documents(source, "train", base=base), 1.0)],
        tokenizer,
        sequence_len=SEQUENCE_LEN,
        rows_per_batch=ROWS,
        buffer_documents=1000,
    )
    batches = [
        loader.next() for _ in range(2 * options.steps[-1])
    ]  # twice what a run needs: seeds differ in their data
    loader.close()
    held_out = held_out_batches(
        source,
        "validation",
        tokenizer,
        sequence_len=SEQUENCE_LEN,
        max_tokens=options.validation_tokens,
        rows_per_batch=64,
        base=base,
    )
    return _Data(
        inputs=np.concatenate([batch.inputs for batch in batches]),
        targets=np.concatenate([batch.targets for batch in batches]),
        held_out=held_out,
        token_bytes=tokenizer.token_bytes,
        vocab_size=tokenizer.vocab_size,
    )


def _tokenizer(source, base: Path):
    """Return the tokenizer of these files, trained once and kept."""
    from nanochat.data.documents import single_pass
    from nanochat.data.sources import digest
    from nanochat.tokenizer import bpe

    folder = base / "tokenizers" / digest(source, base=base)[:16]
    if not folder.exists():
        texts = single_pass(source, "train", base=base)
        trained = bpe.train(texts, vocab_size=VOCAB_SIZE, max_chars=TOKENIZER_CHARS, max_document_chars=10_000)
        trained.save(folder)
    return bpe.Tokenizer.load(folder)


class _Bench:
    """One architecture and its optimizer, compiled once and started anew for every run."""

    def __init__(self, architecture: str, data: _Data, steps: Sequence[int]) -> None:
        import mlx.core as mx

        from nanochat.model.config import GPTConfig
        from nanochat.model.device import runs_on_cpu
        from nanochat.model.gpt import GPT
        from nanochat.optim.groups import OptimizerConfig, build_groups
        from nanochat.optim.optimizer import Optimizer
        from nanochat.optim.schedules import ScheduleConfig, muon_momentum
        from nanochat.train.step import Rates, TrainStep

        self.architecture, self.data, self.steps = architecture, data, steps
        variant = VARIANTS[architecture]
        shape = {"n_layer": 4, "n_embd": 256, "n_head": 2, "n_kv_head": 2}
        config = GPTConfig.for_architecture(
            architecture, sequence_len=SEQUENCE_LEN, vocab_size=data.vocab_size, **shape
        )
        self.model = GPT(config)
        self.model.initialise(mx.random.key(0))
        groups = build_groups(config, OptimizerConfig(variant=variant), tokens_per_step=ROWS * SEQUENCE_LEN)
        self.optimizer = Optimizer(groups, self.model.named_parameters())
        self.step = TrainStep(self.model, self.optimizer, micro_batch_size=ROWS, is_compiled=not runs_on_cpu())
        schedule = ScheduleConfig(steps=steps[-1], kind="constant")
        self.rates: Callable[[float, int], Rates] = lambda scale, step: Rates(
            lr_multiplier=scale, momentum=muon_momentum(variant, step, schedule), weight_decay=0.0
        )

    def measure(self, scale: float, seeds: Sequence[int]) -> list[_Measure]:
        """Return a measurement of each seed with all rates multiplied by `scale`."""
        return [self._run(scale, seed) for seed in seeds]

    def _run(self, scale: float, seed: int) -> _Measure:
        import mlx.core as mx
        import numpy as np

        from nanochat.data.loader import Batch
        from nanochat.evals.bpb import evaluate_bpb

        self.model.initialise(mx.random.key(seed))
        self.optimizer.load_state({name: mx.zeros_like(value) for name, value in self.optimizer.state.items()})
        order = np.random.default_rng(seed).permutation(len(self.data.inputs))
        bpb: dict[int, float] = {}
        nats: dict[int, float] = {}
        for done in range(self.steps[-1]):
            rows = order[done * ROWS : (done + 1) * ROWS]
            batch = Batch(self.data.inputs[rows], self.data.targets[rows])
            self.step.run(batch, rates=self.rates(scale, done))
            if done + 1 in self.steps:
                found = evaluate_bpb(self.model, self.data.held_out, self.data.token_bytes)
                bpb[done + 1], nats[done + 1] = found.bpb, found.nats / found.tokens
        return _Measure(bpb, nats)


def _report(bench: _Bench, options: argparse.Namespace, *, against: list[_Measure] | None) -> bool:
    """Measure at every scale, print the table, and return whether the default is good enough."""
    name = f"architecture {bench.architecture}, optimizer {VARIANTS[bench.architecture]}"
    print(f"{name}{', MUON STEP TIMES SQRT(COLS)' if options.fault else ''}: held-out bits per byte")
    found: dict[float, list[_Measure]] = {}
    for scale in SCALES:
        began = time.monotonic()
        found[scale] = bench.measure(scale, range(options.seeds))
        seconds = time.monotonic() - began
        columns = "   ".join(f"{n} steps: {_spread([m.bpb[n] for m in found[scale]])}" for n in bench.steps)
        print(f"  rates x{scale:<4} {columns}   ({seconds:.1f} s)", flush=True)
    verdicts = [_judge(found, n, against) for n in bench.steps]  # all of them are printed
    return all(verdicts)


def _judge(found: dict[float, list[_Measure]], steps: int, against: list[_Measure] | None) -> bool:
    mean = {scale: statistics.mean(m.bpb[steps] for m in measures) for scale, measures in found.items()}
    worst = max(mean[1.0] / mean[scale] - 1 for scale in (0.5, 2.0))
    is_good = worst <= TOLERANCE
    print(
        f"  {steps} steps: default {'is not' if is_good else 'IS'} worse than either neighbour by more than "
        f"{TOLERANCE:.0%} ({worst:+.2%} against the better one)"
    )
    if against is not None:
        lost = statistics.mean(m.nats[steps] for m in found[1.0]) - statistics.mean(m.nats[steps] for m in against)
        print(f"  {steps} steps: the wrong step costs {lost:+.3f} nats a token at the default rates")
    return is_good


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} +- {deviation:.4f}"


@contextmanager
def _wrong_step() -> Iterator[None]:
    """Plant the fault of the port: a step too large by the root of a matrix's columns."""
    from nanochat.optim import optimizer as module

    sound = module.muon_update

    def wrong(parameter, *arguments, lr, **settings):
        return sound(parameter, *arguments, lr=lr * parameter.shape[-1] ** 0.5, **settings)

    with mock.patch.object(module, "muon_update", wrong):
        yield


if __name__ == "__main__":
    sys.exit(main())
