"""The pretrain stage: next-token prediction on packed documents, from random weights or from `init_from`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import mlx.core as mx

from nanochat.checkpoint.model_folder import load_model_and_tokenizer, load_tokenizer
from nanochat.data.documents import DocumentStream
from nanochat.data.loaders.batches import Batch, BatchLoader
from nanochat.data.loaders.document_rows import Document, DocumentRows, DocumentRowsState
from nanochat.data.loaders.stream_mixture import Stream
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.data.token_cache.cache import cached_stream
from nanochat.errors import InterruptedRun, StageError
from nanochat.inference.engine import Engine
from nanochat.inference.sample_texts import sample_continuations
from nanochat.model.config import GPTConfig
from nanochat.model.dispatch import FastGPT
from nanochat.optim.groups import build_groups
from nanochat.optim.optimizer import Optimizer
from nanochat.optim.schedules import lr_multiplier, muon_momentum, weight_decay_at
from nanochat.plan.derive.start_model import model_differences
from nanochat.plan.specs.job import Job
from nanochat.plan.specs.training import PretrainSpec
from nanochat.plurals import several
from nanochat.stages.process.context import StageContext, StageResult, derive_seed
from nanochat.stages.suites.held_out_text import held_out_batches
from nanochat.stages.training.micro_batch import choose_micro_batch, rows_of_step
from nanochat.stages.training.monitored_suites import MonitoredSuites
from nanochat.stages.training.sample_file import write_samples
from nanochat.stages.training.training import Training
from nanochat.stages.training.training_schedule import TrainingSchedule
from nanochat.stages.training.validation_loss import Validation, validation_metrics
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.train.callbacks import TrainingPosition
from nanochat.train.step import Rates
from nanochat.train.time_budget import TimeBudget

SAMPLE_TOKENS = 48


def run(job: Job, context: StageContext) -> StageResult:
    """Pretrain; write `out/model/` and `out/optimizer.safetensors`; return the metrics.

    Metrics: `loss` (nats per token, last step), `tokens`, `steps`, `skipped_steps`, `cropped_frac` (fraction of tokens
    that packing threw away), `parameters`, and those of `validation_metrics` if validation is on.
    """
    spec = job.spec
    assert isinstance(spec, PretrainSpec), f"pretrain got the job of {spec.stage}"
    model, tokenizer = _load_or_initialise(spec, context)
    sequence_len = model.config.sequence_len
    rows = rows_of_step(spec.tokens_per_step, sequence_len, world_size=context.process_group.size)
    loader = _make_loader(spec, context, tokenizer, sequence_len=sequence_len, rows=rows)
    groups = build_groups(model.config, spec.optimizer, tokens_per_step=spec.tokens_per_step)
    micro_batch_size = choose_micro_batch(context, model.config, sequence_len=sequence_len, rows=rows)
    schedule = _make_schedule(spec, leads=context.process_group.is_writer)
    training = Training(
        context,
        model=model,
        tokenizer=tokenizer,
        optimizer=Optimizer(groups, model.named_parameters(), world=context.process_group.mlx_group),
        loader=loader,
        schedule=schedule,
        micro_batch_size=micro_batch_size,
        hand_on=spec.hand_on,
    )
    validation = _make_validation(spec, context, training, rows_per_batch=micro_batch_size)

    def sample(position: TrainingPosition) -> None:
        texts = sample_continuations(Engine(model, tokenizer), context.job.execution.prompts, max_tokens=SAMPLE_TOKENS)
        write_samples(context, position.step, texts)

    position = training.run(
        evaluate=validation.evaluate,
        suites=MonitoredSuites(context, model, tokenizer, schedule, spec.seed),
        sample=sample,
    )
    passed_on = training.checkpoints.choose_model(position)
    training.write_output()
    measured = validation_metrics(training, position, passed_on)
    return _make_result(position, training, measured, cropped_frac=loader.state.stats.cropped_frac)


def _load_or_initialise(spec: PretrainSpec, context: StageContext) -> tuple[FastGPT, Tokenizer]:
    """Return the model to train, with random weights or those of `init_from`, and its tokenizer."""
    if spec.init_from is not None:
        return _load_init_model(spec, spec.init_from, context)
    tokenizer = load_tokenizer(context.require_upstream("tokenizer"))
    model = FastGPT(_fit_vocabulary(spec.model, tokenizer))
    model.initialise(mx.random.key(derive_seed(spec.seed, "pretrain", "init")))
    mx.eval(model.named_parameters())
    return model, tokenizer


def _fit_vocabulary(planned: GPTConfig, tokenizer: Tokenizer) -> GPTConfig:
    """Return the planned configuration with the actual size of the vocabulary.

    A small text yields fewer pieces than the recipe asks for. Logits must not have columns that no piece belongs to.
    """
    if tokenizer.vocab_size > planned.vocab_size:
        raise StageError(f"the tokenizer has {tokenizer.vocab_size:,} pieces, the model only {planned.vocab_size:,}")
    return dataclasses.replace(planned, vocab_size=tokenizer.vocab_size)


def _load_init_model(spec: PretrainSpec, init_from: str, context: StageContext) -> tuple[FastGPT, Tokenizer]:
    folder = context.model_to_start_from(init_from)
    model, tokenizer = load_model_and_tokenizer(folder)
    recipe_tokenizer, planned = context.upstream("tokenizer"), spec.model
    if recipe_tokenizer is None:  # the recipe asks for no number of pieces
        planned = dataclasses.replace(planned, vocab_size=tokenizer.vocab_size)
    elif load_tokenizer(recipe_tokenizer).model != tokenizer.model:
        raise StageError(f"`init_from` {folder} was trained with a different tokenizer than this recipe's")
    if differences := model_differences(model.config, _fit_vocabulary(planned, tokenizer)):
        raise StageError(f"`init_from` {folder} is not the model of this recipe: {'; '.join(differences)}")
    return model, tokenizer


def _make_loader(
    spec: PretrainSpec, context: StageContext, tokenizer: Tokenizer, *, sequence_len: int, rows: int
) -> BatchLoader[DocumentRowsState]:
    if not context.process_group.is_writer:
        context.process_group.barrier()  # until rank 0 has written the token cache
    streams = [(_open_documents(part.source, context, tokenizer), part.weight) for part in spec.data]
    if context.process_group.is_writer:
        context.process_group.barrier()
    return BatchLoader(
        DocumentRows(
            streams,
            tokenizer,
            sequence_len=sequence_len,
            buffer_documents=spec.buffer_documents,
            long_documents=spec.long_documents,
        ),
        rows_per_batch=rows,
        pad_id=tokenizer.bos_id,
        rank=context.process_group.rank,
        world_size=context.process_group.size,
    )


def _open_documents(source: SourceSpec, context: StageContext, tokenizer: Tokenizer) -> Stream[Document]:
    """Return a source's training documents, as text or, if the recipe asks for it, as tokens from the cache."""
    if not context.job.execution.token_cache:
        return DocumentStream(source, "train", base=context.base, notify=context.notify_user)

    def on_progress(documents: int, tokens: int) -> None:
        if context.should_stop():
            raise InterruptedRun(f"stopped while tokenizing `{source.name}`, finished files are kept")
        context.report_progress(
            0.0, f"tokenizing {source.name}: {several(documents, 'document')}, {several(tokens, 'token')}"
        )

    return cached_stream(
        source, "train", tokenizer, base=context.base, on_progress=on_progress, notify=context.notify_user
    )


def _make_schedule(spec: PretrainSpec, *, leads: bool) -> TrainingSchedule:
    schedule, variant = spec.schedule, spec.optimizer.variant
    budget = None if spec.minutes is None else TimeBudget(60 * spec.minutes, leads=leads)

    def rates(step: int) -> Rates:
        at = step if budget is None else budget.share * schedule.steps
        return Rates(
            lr_multiplier=lr_multiplier(schedule, step, at),
            momentum=muon_momentum(variant, step, schedule, at),
            weight_decay=weight_decay_at(variant, spec.weight_decay, schedule, at),
        )

    return TrainingSchedule(
        tokens_per_step=spec.tokens_per_step,
        last_step=spec.steps,
        rates=rates,
        fraction=lambda step: step / schedule.steps if budget is None else budget.share,
        budget=budget,
    )


def _make_validation(
    spec: PretrainSpec, context: StageContext, training: Training, *, rows_per_batch: int
) -> Validation:
    """Return the validation on held-out documents, to which each source contributes its share of the tokens."""
    total_weight = sum(part.weight for part in spec.data)

    def read() -> list[Batch]:
        return [
            batch
            for part in spec.data
            for batch in held_out_batches(
                part.source,
                "validation",
                training.tokenizer,
                sequence_len=training.model.config.sequence_len,
                max_tokens=math.ceil(context.job.execution.validate_tokens * part.weight / total_weight),
                rows_per_batch=rows_per_batch,
                base=context.base,
            )
        ]

    return Validation(training, read, "held-out tokens")


def _make_result(
    position: TrainingPosition, training: Training, validation: Mapping[str, float], *, cropped_frac: float
) -> StageResult:
    metrics = {"cropped_frac": cropped_frac, "parameters": float(training.model.config.num_parameters())}
    return StageResult({**position.metrics(), **metrics, **validation}, training.timings())
