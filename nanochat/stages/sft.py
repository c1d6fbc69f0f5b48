"""The sft stage: supervised fine-tuning on rendered conversations, with the loss on the assistant's tokens only."""

from __future__ import annotations

from pathlib import Path

from nanochat.checkpoint.model_folder import load_model_and_tokenizer
from nanochat.checkpoint.safetensors_file import read_safetensors
from nanochat.data.loaders.batches import Batch, BatchLoader
from nanochat.data.loaders.conversation_rows import ConversationRows, ConversationRowsState
from nanochat.data.packing.conversation_packer import ConversationStats
from nanochat.errors import StageError
from nanochat.inference.engine import Engine
from nanochat.inference.sample_texts import sample_answers
from nanochat.model.dispatch import FastGPT
from nanochat.optim.groups import build_groups
from nanochat.optim.optimizer import Optimizer
from nanochat.optim.schedules import ScheduleConfig, muon_momentum, sft_lr_multiplier
from nanochat.plan.specs.job import Job
from nanochat.plan.specs.training import SftSpec
from nanochat.plurals import several
from nanochat.stages.process.context import StageContext, StageResult, derive_seed
from nanochat.stages.training.micro_batch import choose_micro_batch, rows_of_step
from nanochat.stages.training.monitored_suites import MonitoredSuites
from nanochat.stages.training.sample_file import write_samples
from nanochat.stages.training.sft_data import RenderedConversations, SftData, held_out_chats, read_sft_data
from nanochat.stages.training.training import Training
from nanochat.stages.training.training_schedule import TrainingSchedule
from nanochat.stages.training.validation_loss import Validation, validation_metrics
from nanochat.storage.layout import OPTIMIZER_FILE
from nanochat.tasks.mixture import TaskMixture
from nanochat.tokenizer.bpe import Tokenizer
from nanochat.train.callbacks import TrainingPosition
from nanochat.train.step import Rates
from nanochat.train.time_budget import TimeBudget

SAMPLE_TOKENS = 128


def run(job: Job, context: StageContext) -> StageResult:
    """Fine-tune; write `out/model/` and `out/optimizer.safetensors`; return the metrics.

    Metrics: `loss` (nats per supervised token, last step), `steps`, `skipped_steps`, `tokens` (supervised), `epochs`,
    `conversations`, `cut_conversations`, `dropped_conversations` (too long), `refused_conversations` (rows of chat data
    that are not conversations), `padding_frac`, `has_moments` (1 if the optimizer started with pretraining's moments);
    if chats are held out, `held_out_conversations` and the metrics of `validation_metrics`.
    """
    spec = job.spec
    assert isinstance(spec, SftSpec), f"sft got the job of {spec.stage}"
    folder = context.model_to_start_from(spec.init_from)
    model, tokenizer = load_model_and_tokenizer(folder)
    optimizer, has_moments = _make_optimizer(spec, context, model, folder)
    sequence_len = _sequence_len(spec, model)
    rows = rows_of_step(spec.tokens_per_step, sequence_len, world_size=context.process_group.size)
    data = read_sft_data(spec, context)
    loader = _make_loader(spec, context, data.mixture, tokenizer, sequence_len=sequence_len, rows=rows)
    micro_batch_size = choose_micro_batch(context, model.config, sequence_len=sequence_len, rows=rows)
    training = Training(
        context,
        model=model,
        tokenizer=tokenizer,
        optimizer=optimizer,
        loader=loader,
        schedule=_make_schedule(spec, loader, leads=context.process_group.is_writer),
        micro_batch_size=micro_batch_size,
        hand_on=spec.hand_on,
    )
    validation = _make_validation(
        data, context, training, sequence_len=sequence_len, tokens_per_batch=micro_batch_size * sequence_len
    )

    def sample(position: TrainingPosition) -> None:
        texts = sample_answers(Engine(model, tokenizer), context.job.execution.prompts, max_tokens=SAMPLE_TOKENS)
        write_samples(context, position.step, texts)

    position = training.run(
        evaluate=validation.evaluate if data.held_out else None,
        suites=MonitoredSuites(context, model, tokenizer, training.schedule, spec.seed),
        sample=sample,
    )
    passed_on = training.checkpoints.choose_model(position)
    training.write_output()
    context.log_line(_describe_conversations(loader.state.stats, data, sequence_len))
    metrics = _metrics(position, loader.state, has_moments=has_moments)
    metrics["refused_conversations"] = float(data.refused)
    metrics |= {"held_out_conversations": float(data.held_out_examples)} if data.held_out else {}
    return StageResult(metrics | validation_metrics(training, position, passed_on), training.timings())


def _make_optimizer(spec: SftSpec, context: StageContext, model: FastGPT, folder: Path) -> tuple[Optimizer, bool]:
    """Return the optimizer, and whether it starts with the moments that pretraining saved beside the weights."""
    groups = build_groups(model.config, spec.optimizer, tokens_per_step=spec.tokens_per_step)
    optimizer = Optimizer(groups, model.named_parameters(), world=context.process_group.mlx_group)
    # A stage saves them beside its model folder, a checkpoint inside.
    path = next((at for at in (folder.parent / OPTIMIZER_FILE, folder / OPTIMIZER_FILE) if at.is_file()), None)
    if path is None:
        return optimizer, False
    optimizer.load_state(read_safetensors(path, with_counts=True))
    return optimizer, True


def _sequence_len(spec: SftSpec, model: FastGPT) -> int:
    """Return the length of rows: the recipe's or the model's. Raise a StageError if the model's context is shorter."""
    context_len = model.config.sequence_len
    if spec.sequence_len is not None and spec.sequence_len > context_len:
        raise StageError(f"`sft.sequence_len` {spec.sequence_len:,} is longer than the model's context {context_len:,}")
    return spec.sequence_len or context_len


def _make_loader(
    spec: SftSpec, context: StageContext, examples: TaskMixture, tokenizer: Tokenizer, *, sequence_len: int, rows: int
) -> BatchLoader[ConversationRowsState]:
    conversations = ConversationRows(
        RenderedConversations(examples, tokenizer),
        sequence_len=sequence_len,
        buffer_conversations=spec.buffer_conversations,
        pad_id=tokenizer.bos_id,
        seed=derive_seed(spec.seed, "sft", "order"),
        epochs=spec.epochs,
        turn_end_id=tokenizer.special("<|assistant_end|>"),
    )
    return BatchLoader(
        conversations,
        rows_per_batch=rows,
        pad_id=tokenizer.bos_id,
        rank=context.process_group.rank,
        world_size=context.process_group.size,
    )


def _make_schedule(spec: SftSpec, loader: BatchLoader[ConversationRowsState], *, leads: bool) -> TrainingSchedule:
    last_step = spec.last_step
    budget = None if spec.minutes is None else TimeBudget(60 * spec.minutes, leads=leads)

    def progress(step: int) -> float:
        if budget is not None:
            return budget.share
        return loader.state.progress if last_step is None else step / last_step

    # Momentum as at the start of pretraining; no weight decay, as in nanochat's chat_sft.
    schedule = ScheduleConfig(steps=last_step or 1, kind="constant")

    def rates(step: int) -> Rates:
        return Rates(
            lr_multiplier=sft_lr_multiplier(progress(step), spec.constant_frac, spec.final_frac),
            momentum=muon_momentum(spec.optimizer.variant, step, schedule),
            weight_decay=0.0,
        )

    return TrainingSchedule(
        tokens_per_step=spec.tokens_per_step, last_step=last_step, rates=rates, fraction=progress, budget=budget
    )


def _make_validation(
    data: SftData, context: StageContext, training: Training, *, sequence_len: int, tokens_per_batch: int
) -> Validation:
    """Return the validation on held-out chats, whose loss counts the same tokens as that of training."""

    def read() -> list[Batch]:
        return held_out_chats(
            data.held_out,
            training.tokenizer,
            sequence_len=sequence_len,
            max_tokens=context.job.execution.validate_tokens,
            tokens_per_batch=tokens_per_batch,
        )

    return Validation(training, read, "tokens of held-out answers", counts_specials=True)


def _describe_conversations(stats: ConversationStats, data: SftData, sequence_len: int) -> str:
    return (
        f"conversations: {stats.placed_conversations:,} trained on, {stats.cut_conversations:,} of them cut to "
        f"{sequence_len + 1:,} tokens; {stats.dropped_conversations:,} dropped; {several(data.refused, 'row')} refused"
    )


def _metrics(position: TrainingPosition, data: ConversationRowsState, *, has_moments: bool) -> dict[str, float]:
    stats = data.stats
    return {
        **position.metrics(),
        "epochs": data.epochs_done,
        "conversations": float(stats.placed_conversations),
        "cut_conversations": float(stats.cut_conversations),
        "dropped_conversations": float(stats.dropped_conversations),
        "padding_frac": stats.padding_frac,
        "has_moments": float(has_moments),
    }
