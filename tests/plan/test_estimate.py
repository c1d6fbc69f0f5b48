"""Estimates against arithmetic by hand and against the project's measurements."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.inference import batch_sizes
from nanochat.model.config import GPTConfig
from nanochat.plan.compile import compile_plan
from nanochat.plan.estimate.device_classes import DeviceClass, decode_seconds
from nanochat.plan.estimate.estimate import Estimate, total
from nanochat.plan.estimate.memory import evaluation, sizes, training
from nanochat.plan.plan import Plan
from nanochat.plan.quantities import show_bytes
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.recipe.load import load_recipe

Compile = Callable[..., Plan]
RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def compiled_for() -> Callable[..., Plan]:
    """Compile the recipe `speedrun` for a device and its memory."""

    def compiled(device: DeviceClass, memory_bytes: int, *flags: str) -> Plan:
        recipe = load_recipe(RECIPES / "speedrun.yaml", list(flags))
        return compile_plan(recipe, device_class=device, memory_bytes=memory_bytes)

    return compiled


def shape(n_layer: int, n_embd: int, n_head: int, sequence_len: int, vocab_size: int, n_kv_head: int = 0) -> GPTConfig:
    heads = {"n_head": n_head, "n_kv_head": n_kv_head or n_head}
    return GPTConfig(n_layer=n_layer, n_embd=n_embd, **heads, sequence_len=sequence_len, vocab_size=vocab_size)


TINY = GPTConfig(n_layer=1, n_embd=64, n_head=2, n_kv_head=2, sequence_len=32, vocab_size=320, window_pattern="L")
"""Block: 12 * 64^2 = 49,152 and a gate of 2 x 32; three tables of 320 x 64 = 20,480; two multipliers."""
TINY_MATRICES = 49_152 + 64
TINY_REST = 3 * 20_480 + 2


def test_optimizer_state_is_one_value_per_matrix_weight_and_two_for_the_rest() -> None:
    """Muon's second moment adds one per row or column: 4 of 64 and 2 of 256 in the block, 32 for the gate."""
    expected = 4 * (TINY_MATRICES + 4 * 64 + 2 * 256 + 32 + 2 * TINY_REST)
    assert sizes.optimizer_state_bytes(TINY) == expected
    assert sizes.checkpoint_bytes(TINY) == expected + 4 * (TINY_MATRICES + TINY_REST)


def test_training_memory_counts_weights_gradients_and_activations() -> None:
    """fp32, per token: 11.5 widths in the block, four outside it, 12 of gradients."""
    step = training.training_memory(TINY, sequence_len=32, dtype="float32")
    parameters = TINY_MATRICES + TINY_REST
    assert (step.weights, step.gradients) == (4 * parameters, 4 * parameters)
    assert step.per_row == 32 * 4 * 64 * (11.5 + 4 + 12)
    arrays = 8 * parameters + sizes.optimizer_state_bytes(TINY) + 3 * step.per_row + 3 * 2 * 4 * 32 * 320
    assert step.peak(3, accumulates=False) == sizes.process_peak(arrays, "float32")
    assert step.peak(3, accumulates=True) == sizes.process_peak(arrays + 4 * parameters, "float32")


def test_training_memory_of_a_large_model_on_few_tokens_peaks_in_the_update() -> None:
    """Old and new weights, gradients, the state and half of the new one; one row of 32 tokens is little beside them."""
    config = shape(2, 512, 4, 32, 32768)
    step = training.training_memory(config, sequence_len=32, dtype="float32", activation_checkpointing=True)
    state = sizes.optimizer_state_bytes(config)
    arrays = 3 * 4 * config.num_parameters() + state + state // 2
    assert step.peak(1, accumulates=False) == sizes.process_peak(arrays, "float32")


def test_training_memory_in_bf16_has_a_second_copy_of_the_weights() -> None:
    step = training.training_memory(TINY, sequence_len=32, dtype="bfloat16")
    assert step.weights == 6 * (TINY_MATRICES + TINY_REST)
    assert step.per_row == 32 * (2 * 12 * 64 + 4 * 4 * 64)


def test_training_memory_on_a_gpu_counts_each_array_once() -> None:
    """bf16 gradients, float32 sums of them, most of the logits, and as much unfinished work as two updates."""
    step = training.training_memory(TINY, sequence_len=32, dtype="bfloat16")
    parameters, state = TINY_MATRICES + TINY_REST, sizes.optimizer_state_bytes(TINY)
    logits = round(0.7 * 3 * 2 * 2 * 32 * 320)
    arrays = 8 * parameters + state + 3 * step.per_row + logits + 2 * (6 * parameters + state)
    assert step.peak(3, accumulates=False) == 96 * MIB + arrays
    assert step.peak(3, accumulates=True) == 96 * MIB + arrays + 4 * parameters


DEPTH_4 = shape(4, 256, 2, 2048, 32768)
QUICK = shape(4, 128, 2, 256, 2048)
MIB = 2**20


@pytest.mark.parametrize(
    ("dtype", "config", "rows", "accumulates", "recomputes", "measured_mib"),
    [
        ("float32", QUICK, 16, False, False, 300),
        ("float32", QUICK, 4, True, False, 177),
        ("float32", QUICK, 16, False, True, 254),
        ("float32", shape(4, 256, 2, 512, 8192), 8, False, False, 588),
        ("float32", shape(6, 384, 6, 256, 4096, n_kv_head=3), 16, False, False, 847),
        ("float32", shape(2, 128, 4, 1024, 2048), 4, False, False, 215),
        ("float32", DEPTH_4, 2, False, False, 1019),
        ("bfloat16", DEPTH_4, 2, False, False, 1257),
        ("bfloat16", DEPTH_4, 2, False, True, 1277),
        ("bfloat16", DEPTH_4, 16, False, False, 4853),
        ("bfloat16", GPTConfig(), 16, False, False, 15352),
        ("bfloat16", GPTConfig(), 8, True, False, 11388),
        ("bfloat16", GPTConfig(), 16, False, True, 11342),
    ],
)
def test_training_memory_matches_measured_runs(
    dtype: sizes.Dtype, config: GPTConfig, rows: int, accumulates: bool, recomputes: bool, measured_mib: int
) -> None:
    """Process sizes on a CPU (float32), and arrays on one H200, from `tests/benchmarks/memory.py`.

    Too low a plan is worse, so 5 % below is the limit. Runs on the GPU (MLX 0.32) differ by some per cent, and below
    4 GiB the plan may be far too high.
    """
    length = config.sequence_len
    step = training.training_memory(config, sequence_len=length, dtype=dtype, activation_checkpointing=recomputes)
    lowest, highest = (0.95, 1.16) if dtype == "float32" else (0.95, 1.16 if measured_mib > 4096 else 1.75)
    assert lowest < step.peak(rows, accumulates=accumulates) / MIB / measured_mib < highest


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("pattern", ["L", "SSSL"])
@pytest.mark.parametrize(("dtype", "measured_mib"), [("bfloat16", (5680, 5734, 5788)), ("float32", (6516,))])
def test_training_memory_on_a_mac_matches_measured_steps(
    dtype: sizes.Dtype, measured_mib: tuple[int, ...], pattern: str, rows: int, recomputes: bool
) -> None:
    """286M parameters, T = 2,048: all eight cases need what the update needs.

    Measured with Metal's path: in bfloat16 on CUDA (L, two rows, recomputed; compiled by MLX and not) and on a CPU (one
    row of SSSL, matrix products replaced by arrays of their size); in float32 on a CPU, the same in all eight cases.
    """
    step = training.training_memory(
        GPTConfig(window_pattern=pattern),
        sequence_len=2048,
        dtype=dtype,
        activation_checkpointing=recomputes,
        on_metal=True,
    )
    for mib in measured_mib:
        assert step.peak(rows, accumulates=False) / MIB == pytest.approx(mib, rel=0.1)


def test_training_memory_on_a_mac_is_that_of_the_update_or_grows_with_the_rows() -> None:
    """The update: float32 weights and moments (Muon one, AdamW two), old and new, and bfloat16 gradients.

    Copies in bfloat16 are gone by then. With many rows, each adds its activations.
    """
    parameters, state = GPTConfig().num_parameters(), sizes.optimizer_state_bytes(GPTConfig())
    step = training.training_memory(GPTConfig(), sequence_len=2048, dtype="bfloat16", on_metal=True)
    update = 2 * (4 * parameters + state) + 2 * parameters
    assert step.peak(1, accumulates=False) == pytest.approx(update, rel=0.05)
    grown = step.peak(32, accumulates=False) - step.peak(16, accumulates=False)
    assert grown == pytest.approx(16 * step.per_row, rel=0.05)


@pytest.mark.parametrize(("memory_gib", "rows"), [(16, 4), (32, 16), (64, 16)])
def test_plan_for_a_mac_names_the_rows_that_fit_and_the_margin(
    compiled_for: Callable[..., Plan], memory_gib: int, rows: int
) -> None:
    """macOS recommends two thirds of 16 and 32 GiB for the GPU and three quarters of 64; 0.9 of that may be used."""
    share = {16: 2 / 3, 32: 2 / 3, 64: 3 / 4}[memory_gib]
    usable = 0.9 * share * memory_gib * 2**30
    plan = compiled_for("metal", memory_gib * 2**30)
    (stage,) = (stage for stage in plan.stages if stage.name == "pretrain")
    assert stage.estimate.micro_batch_size == rows
    peak = stage.estimate.peak_memory_bytes
    assert peak is not None and peak < usable
    (note,) = (note for note in plan.notes if note.startswith("pretrain on a Mac"))
    assert f"a Mac with {memory_gib}.0 GiB takes {rows} rows" in note
    assert note.endswith(f"which leaves {show_bytes(int(usable) - peak)}")


def test_plan_for_a_mac_names_other_stages_that_the_run_would_refuse(
    compiled_for: Callable[..., Plan],
) -> None:
    """The tokenizer of the speedrun needs 11.5 GiB. Two thirds of 16 GiB are less, two thirds of 32 GiB are more.

    10.67 GiB are 6 bytes for 1.86 billion characters, and what the process, its index and 32,768 pieces take.
    """

    def refused(memory_gib: int, *flags: str) -> list[str]:
        notes = compiled_for("metal", memory_gib * 2**30, *flags).notes
        return [note for note in notes if "tokenizer does not fit" in note]

    (note,) = refused(16)
    assert note.endswith(
        "but a Mac with 16.0 GiB has 10.7 GiB for it; set `tokenizer.max_chars` lower, to at most 1.80B"
    )
    assert refused(16, "tokenizer.max_chars=1.80B") == []
    assert refused(32) == refused(16, "tokenizer.max_chars=10M") == refused(16, "run.limits.memory=14G") == []


def test_plan_for_a_mac_says_which_limit_decides(compiled: Callable[..., Plan]) -> None:
    """A Mac with 16 GiB has 9.60 of them for training: 0.9 of two thirds."""

    def notes(*flags: str) -> str:
        return " ".join(compiled(*flags, device_class="metal", memory_bytes=16 * 2**30).notes)

    assert "of the 100 MiB of `run.limits.memory`, which leaves" in notes("run.limits.memory=100M")
    assert "of 9.60 GiB, which leaves" in notes("run.limits.memory=100G")
    assert "but `run.limits.memory` allows 1.00 MiB for it; set `run.act" in notes("run.limits.memory=1M")
    shape = "model={n_layer: 20, n_embd: 1280, n_head: 10, sequence_len: 2048}"
    large = (shape, "tokenizer.vocab_size=32768", "pretrain.tokens_per_step=131072")
    advice = "a Mac with 16.0 GiB has 9.60 GiB for it; set `run.limits.memory` to at most 9.60 GiB, or remove it"
    assert advice in notes(*large, "run.limits.memory=100G")
    assert "9.60 GiB for it; lower `run.micro_batch_size`, or set" in notes(*large, "run.micro_batch_size=16")


def test_stages_after_starting_weights_are_estimated_with_their_model(compiled: Callable[..., Plan]) -> None:
    """Without a model of their own they cost what they cost in the recipe that trained it; unread weights cost None."""
    whole = compiled()
    gone = ("tokenizer=null", "model=null", "pretrain=null", "base_eval=null", "sft.tokens_per_step=4096")
    flags = (*gone, "sft.init_from=there", "expect=null")
    plan = compiled(*flags, start_models={"sft": QUICK})
    for name in ("sft", "chat_eval"):
        assert plan.stage(name).model == QUICK == whole.stage(name).model
        assert plan.stage(name).estimate == whole.stage(name).estimate
    unread = compiled(*flags)
    assert unread.stage("chat_eval").model is None and unread.totals.seconds is None
    assert "not known before data or weights are read, and not in any total: sft, chat_eval" in unread.notes


def test_pretraining_from_weights_is_estimated_with_their_vocabulary(compiled: Callable[..., Plan]) -> None:
    """It costs what it costs in the recipe that trained the tokenizer, and not what 32,768 pieces would cost."""
    whole = compiled()
    flags = ("tokenizer=null", "pretrain.init_from=there")
    plan = compiled(*flags, start_models={"pretrain": QUICK})
    for name in ("pretrain", "sft", "chat_eval"):
        assert plan.stage(name).model == QUICK == whole.stage(name).model
    assert plan.stage("pretrain").estimate.peak_memory_bytes == whole.stage("pretrain").estimate.peak_memory_bytes
    note = "the vocabulary is that of the starting weights; sizes are shown for 32,768 pieces"
    assert note in compiled(*flags).notes and note not in plan.notes


@pytest.mark.parametrize(
    ("config", "bpb_mib", "choices_mib", "decoding_mib"), [(QUICK, 180, 159, 260), (DEPTH_4, 427, 333, 743)]
)
def test_evaluation_memory_matches_measured_cpu_processes(
    config: GPTConfig, bpb_mib: int, choices_mib: int, decoding_mib: int
) -> None:
    """Measured in the same way: bits per byte, options with a common prefix, and 32 prompts that fill the context."""
    planned = (
        evaluation.scoring_bytes(config, tokens=batch_sizes.BPB_TOKENS, dtype="float32"),
        evaluation.scoring_bytes(config, tokens=batch_sizes.CPU_SCORED_TOKENS, gathers=True, dtype="float32"),
        evaluation.decoding_bytes(config, rows=32, tokens=config.sequence_len, dtype="float32"),
    )
    for one, measured_mib in zip(planned, (bpb_mib, choices_mib, decoding_mib), strict=True):
        assert 0.91 < one / MIB / measured_mib < 1.11


@pytest.mark.parametrize(
    ("config", "measured_mib"), [(QUICK, (282, 316, 408)), (DEPTH_4, (810, 847, 1059)), (GPTConfig(), (3471, 3471))]
)
def test_scoring_memory_matches_measured_gpu_runs(config: GPTConfig, measured_mib: tuple[int, ...]) -> None:
    """Sizes of MLX's arrays in bfloat16 on one H100. Runs differ, because frees lag behind the work that is queued."""
    planned = (
        evaluation.scoring_bytes(config, tokens=batch_sizes.GPU_SCORED_TOKENS, gathers=True, dtype="bfloat16") / MIB
    )
    assert min(measured_mib) < planned < 1.45 * min(measured_mib)
    assert planned > 0.75 * max(measured_mib)


def test_logit_values_match_the_block_that_the_cpu_computes() -> None:
    """The plan must not import MLX, so it repeats this number."""
    from nanochat.model.cpu import fast_math

    assert sizes.LOGIT_VALUES == fast_math.BLOCK_ELEMENTS


def test_estimate_adds_memory_for_reading_parquet(compiled: Compile) -> None:
    """Parquet needs pyarrow, JSON lines do not."""
    peaks = {}
    for path in ("c.jsonl", "c.parquet"):
        plan = compiled(f"sources.chat={{path: {path}}}", "sft.data={chat: {task: conversations, source: chat}}")
        peaks[path] = plan.stage("sft").estimate.peak_memory_bytes
    assert peaks["c.parquet"] == peaks["c.jsonl"] + sizes.PARQUET_BYTES


def test_estimate_of_an_evaluation_has_the_memory_of_its_largest_suite(compiled: Compile) -> None:
    """A GPU scores options on more tokens at a time than it measures bits per byte on."""
    sources = "sources.questions={path: q.jsonl}"

    def peak(stage: str, *suites: str) -> int:
        plan = compiled(sources, f"{stage}.suites={{{', '.join(suites)}}}", f"{stage}.samples=[]", device_class="cuda")
        return plan.stage(stage).estimate.peak_memory_bytes

    bits = "a: {task: bpb}"
    options = "b: {task: mmlu, source: questions}"
    assert peak("base_eval", bits) < peak("base_eval", options) == peak("base_eval", bits, options)


@pytest.mark.parametrize(
    ("source", "chars", "vocab_size", "measured_mib"),
    [
        ("stdlib", 1_000_000, 2_048, 98),
        ("stdlib", 5_000_000, 2_048, 172),
        ("stdlib", 11_900_000, 2_048, 255),
        ("stdlib", 11_900_000, 8_192, 292),
        ("text", 1_000_000, 4_096, 131),
        ("text", 5_000_000, 4_096, 176),
        ("text", 20_000_000, 4_096, 279),
        ("text", 20_000_000, 32_768, 319),
        ("text", 60_000_000, 32_768, 545),
    ],
)
def test_tokenizer_memory_matches_measured_processes(
    compiled: Compile, source: str, chars: int, vocab_size: int, measured_mib: int
) -> None:
    """Measured in runs with `--only tokenizer`, on Python's library and on books in parquet."""
    plan = compiled(
        "sources.text={path: t.parquet}",
        f"tokenizer.source={source}",
        f"tokenizer.vocab_size={vocab_size}",
        text_chars=lambda source: chars,
    )
    planned = plan.stage("tokenizer").estimate.peak_memory_bytes
    assert 0.92 < planned / MIB / measured_mib < 1.4


def test_estimates_for_other_devices_know_that_the_text_is_small(compiled: Compile) -> None:
    """Without its size the tokenizer is assumed to read 2 billion characters, on every device."""
    settings = ("sources.stdlib={path: a.txt}", "tokenizer.max_chars=2_000_000_000", "pretrain.horizon.tokens=90M")

    def on_apple(**known: object) -> str:
        (note,) = [note for note in compiled(*settings, **known).notes if "Apple" in note]
        return note

    assert "GiB of memory" in on_apple()
    assert "MiB of memory" in on_apple(text_chars=lambda source: 30_000)


@pytest.mark.parametrize(
    ("passes", "note"),
    [
        (
            14,
            "about 14 times: beyond 4 passes a model mostly learns it by heart; lower `pretrain.horizon` (4 passes "
            "are about 429K tokens), or add text",
        ),
        (4, "about 4 times"),
        (1, None),
    ],
)
def test_plan_says_how_often_a_small_text_is_read(compiled: Compile, passes: int, note: str | None) -> None:
    """367 steps of 4,096 tokens; with 2,048 pieces a token is estimated to have 0.45 * 11 - 1.9 = 3.05 bytes."""
    chars = round(367 * 4_096 * 3.05 / passes)
    found = [text for text in compiled(text_chars=lambda source: chars).notes if "reads" in text]
    assert found == ([] if note is None else [f"pretrain reads the text of stdlib {note}"])


@pytest.mark.parametrize(
    ("size", "rest"),
    [
        (
            61_000,
            "10 times or more: the model learns the answers by heart; lower `sft.horizon` (4 passes are about "
            "161K tokens), or add chats",
        ),
        (305_000, None),
    ],
)
def test_plan_says_how_often_few_chats_are_read(compiled: Compile, size: int, rest: str | None) -> None:
    """Half of 98 steps of 4,096 tokens of 3.05 bytes are 612,147 bytes. 401,408 tokens * 4 / 10 are 160,563."""
    plan = compiled(
        "sources.mine={path: mine.jsonl}",
        "sft.data={mine: {task: conversations, source: mine, weight: 1}, spelling: {weight: 1}}",
        text_chars=lambda source: size if source.name == "mine" else None,
    )
    found = [note for note in plan.notes if "reads the conversations of" in note]
    assert found == ([] if rest is None else [f"sft reads the conversations of mine {rest}"])


def test_plan_counts_how_often_a_text_is_read_by_its_share_of_the_mixture(compiled: Compile) -> None:
    """A tenth of 1,503,232 tokens of 3.05 bytes is 458,486 bytes, which are six times 76,414."""
    plan = compiled(
        "sources.few={path: few.txt}",
        "pretrain.data={stdlib: {weight: 9}, few: {weight: 1}}",
        text_chars=lambda source: 76_414 if source.name == "few" else None,
    )
    assert [note.split(":")[0] for note in plan.notes if "reads" in note] == [
        "pretrain reads the text of few about 6 times"
    ]


def test_plan_counts_only_as_much_held_out_text_as_there_is(compiled: Compile) -> None:
    """2 % of the library's 11.8 million characters are 77,377 tokens of 3.05 bytes. Other text has 10,000 of them."""
    suite = "mine={task: bpb, tokens: 12_288, source: mine}"
    plan = compiled(
        "sources.mine={path: a.txt}",
        f"base_eval.suites.{suite}",
        f"run.monitor.evaluate.suites.{suite}",
        held_out_chars=lambda source: 30_500 if source.name == "mine" else None,
    )
    assert plan.stage("base_eval").estimate.tokens == 131_072 + 10_000
    assert [note for note in plan.notes if "held-out" in note] == [
        "base_eval.mine may read 12,288 tokens, but all held-out text of mine has about 10.0K"
    ]
    few = compiled("sources.mine={path: a.txt}", f"base_eval.suites.{suite}", held_out_chars=lambda _: 1_525)
    assert (
        "base_eval.mine may read 12,288 tokens, but all held-out text of mine has about 500: too few to judge a model "
        "by; raise `validation.hash_frac`, or hold out more files" in few.notes
    )
    monitored = plan.stage("pretrain").estimate.suite_seconds
    assert monitored == pytest.approx(4 / 3 * 10_000 * QUICK.flops_per_token() / 3 / 40e9)
    assert compiled().stage("base_eval").estimate.tokens == 77_377


@pytest.mark.parametrize(
    ("config", "device", "rows", "measured"),
    [
        (GPTConfig.from_depth(12), "cuda", 1, (885, 1_072)),
        (GPTConfig.from_depth(12), "cuda", 32, (31_722, 34_020)),
        (QUICK, "cpu", 1, (694, 825)),
    ],
)
def test_speed_of_decoding_is_near_that_of_measured_devices(
    config: GPTConfig, device: DeviceClass, rows: int, measured: tuple[int, int]
) -> None:
    """Tokens per second of H100s and of a 64-core Xeon, from `tests/benchmarks/results`."""
    seconds = decode_seconds(config, 1_000, rows, "float32" if device == "cpu" else "bfloat16", device)
    assert 0.85 * measured[0] < 1_000 / seconds < 1.15 * measured[1]


def test_training_memory_with_checkpointing_counts_one_block_and_all_inputs() -> None:
    plain, checkpointed = (
        training.training_memory(
            GPTConfig(), sequence_len=2048, dtype="bfloat16", activation_checkpointing=flag
        ).per_row
        for flag in (False, True)
    )
    assert checkpointed == 2048 * (12 * 768 * 2 + 12 * 768 * 2 * 6 + 4 * 4 * 768)
    assert plain == 2048 * (12 * 12 * 768 * 2 + 4 * 4 * 768)


largest = functools.partial(training.micro_batch_size, TINY, ExecutionSpec(), sequence_len=32, dtype="float32")


@given(limit_mib=st.integers(1, 4000), rows=st.integers(1, 96))
def test_micro_batch_size_auto_fits_and_divides_the_step(limit_mib: int, rows: int) -> None:
    """It is the largest that does, or 0 if not even one row fits."""
    step = training.training_memory(TINY, sequence_len=32, dtype="float32")
    limit = limit_mib * MIB
    chosen = largest(limit_bytes=limit, rows=rows)
    fitting = [n for n in range(1, rows + 1) if rows % n == 0 and step.peak(n, accumulates=n < rows) <= limit]
    assert chosen == max(fitting, default=0)


def test_micro_batch_size_auto_respects_at_most() -> None:
    assert largest(limit_bytes=2**33, rows=48, at_most=20) == 16


def test_estimate_of_training_counts_whole_steps(compiled: Compile) -> None:
    """367 steps of 4096 tokens; per token 6 * (4 * 12 * 128^2 + 2048 * 128 + 2 * 64) + 12 * 128 * (3 * 128 + 256)."""
    estimate = compiled().stage("pretrain").estimate
    per_token = 6 * (4 * 12 * 128**2 + 2048 * 128 + 2 * 64) + 12 * 128 * (3 * 128 + 256)
    assert estimate.tokens == 367 * 4096 == 1_503_232
    assert estimate.flops == 1_503_232 * per_token


@pytest.mark.parametrize(("tokens", "steps"), [(500_000, 122), (400_000, 98), (1, 1)])
def test_sft_spec_rounds_tokens_to_the_nearest_step(compiled: Compile, tokens: int, steps: int) -> None:
    """The stage trains `last_step` steps, and the estimate counts the same ones."""
    sft = compiled(f"sft.horizon.tokens={tokens}").stage("sft")
    assert sft.spec.last_step == steps
    assert sft.estimate.tokens == steps * 4096


def test_estimate_of_an_evaluation_counts_the_forward_pass(compiled: Compile) -> None:
    evaluation = compiled(held_out_chars=lambda source: None).stage("base_eval").estimate
    pretrain = compiled().stage("pretrain").estimate
    assert evaluation.tokens == 131_072
    assert evaluation.flops / evaluation.tokens == pytest.approx(pretrain.flops / pretrain.tokens / 3)


def test_estimate_knows_the_epochs_of_generated_examples(compiled: Compile) -> None:
    """1,000 words of about 32 tokens are ceil(32,000 / 4096) = 8 steps."""
    assert compiled("sft.horizon={epochs: 1}").stage("sft").estimate.tokens == 8 * 4096


def test_estimate_of_reinforcement_learning_is_near_the_measured_time() -> None:
    """Three seeds of the recipe took 270, 320 and 321 s of CPU on quiet cores, evaluations included."""
    plan = compile_plan(load_recipe(RECIPES / "rl_spelling.yaml"), device_class="cpu", start_models={"rl": QUICK})
    assert 270 < (plan.totals.seconds or 0) < 321


def test_estimate_does_not_know_the_epochs_of_unread_conversations(compiled: Compile) -> None:
    plan = compiled(
        "sources.chat={path: c.jsonl}",
        "sft.data={chat: {task: conversations, source: chat}}",
        "sft.horizon={epochs: 1}",
    )
    assert plan.stage("sft").estimate.tokens is None
    assert plan.stage("sft").estimate.peak_memory_bytes is not None
    assert any("not in any total: sft" in note for note in plan.notes)


@pytest.mark.parametrize(("keep_when_done", "kept"), [("false", 1), ("true", 5)])
def test_estimate_of_disk_counts_checkpoints_and_output(compiled: Compile, keep_when_done: str, kept: int) -> None:
    """Three kept checkpoints, the best one, and one being written; the output alone is left unless all are kept."""
    plan = compiled(f"run.checkpoint={{keep: 3, keep_when_done: {keep_when_done}}}")
    estimate, one_save = plan.stage("pretrain").estimate, sizes.checkpoint_bytes(QUICK)
    assert (estimate.disk_bytes, estimate.kept_disk_bytes) == (5 * one_save, kept * one_save)


def test_total_disk_is_the_most_used_at_once() -> None:
    """Stages of 10 (3 stay), 8 (all stay), 4 (1 stays): 10, then 3 + 8, then 3 + 8 + 4."""
    stages = [Estimate(disk_bytes=10, kept_disk_bytes=3), Estimate(disk_bytes=8), Estimate(), Estimate(disk_bytes=4)]
    assert [total(stages[:count]).disk_bytes for count in (1, 2, 4)] == [10, 11, 15]
    assert total([*stages[:2], Estimate(disk_bytes=1, kept_disk_bytes=0), Estimate(disk_bytes=30)]).disk_bytes == 41


def test_total_adds_costs_and_takes_the_largest_memory() -> None:
    one = Estimate(parameters=5, tokens=10, flops=1.0, peak_memory_bytes=7, disk_bytes=1, seconds=2.0)
    other = Estimate(parameters=5, tokens=None, flops=2.0, peak_memory_bytes=3, disk_bytes=2, seconds=None)
    assert total([Estimate(), one, other]) == Estimate(
        parameters=5, tokens=10, flops=3.0, peak_memory_bytes=7, disk_bytes=3, seconds=2.0
    )
    assert total([Estimate()]) == Estimate()


def test_estimate_notes_name_the_device(compiled: Compile) -> None:
    assert compiled().notes[0].startswith("time and memory are estimates for one x86-64 core")
    on_gpu = compiled("run.device=gpu")
    assert "H100" in on_gpu.notes[0]
    faster, slower = on_gpu.totals.seconds, compiled().totals.seconds
    assert faster < slower
    assert "Apple" in compiled("run.device=gpu", device_class="metal").notes[0]


def test_estimate_divides_time_and_rows_among_processes(compiled: Compile) -> None:
    """Two processes need half the time, apart from one second to start, and the memory of 8 of the 16 rows each."""
    one, two = (compiled(f"run.distributed.processes={n}").stage("pretrain") for n in (1, 2))
    assert two.estimate.seconds - 1 == pytest.approx((one.estimate.seconds - 1) / 2)
    assert (two.estimate.flops, two.estimate.tokens) == (one.estimate.flops, one.estimate.tokens)
    eight = compiled("run.micro_batch_size=8").stage("pretrain")
    assert two.estimate.peak_memory_bytes == eight.estimate.peak_memory_bytes
    evals = [compiled(f"run.distributed.processes={n}").stage("base_eval").estimate for n in (1, 2)]
    assert evals[0] == evals[1]


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize(("device", "flops_per_second"), [("cpu", 4e10), ("cuda", 3e14)])
def test_horizon_in_minutes_gives_the_steps_that_fit_at_the_speed_of_the_device(
    compiled: Compile, stage: str, device: str, flops_per_second: float
) -> None:
    horizon = {"pretrain": "pretrain.horizon={minutes: 2}", "sft": "sft.horizon={minutes: 2}"}[stage]
    plan = compiled(horizon, device_class=device)
    estimate, startup = plan.stage(stage).estimate, {"cpu": 1.0, "cuda": 20.0}[device]
    assert estimate.seconds == 120 + startup
    spec = plan.stage("pretrain").spec
    assert estimate.tokens is not None
    exact = 120 * flops_per_second / spec.model.flops_per_token()
    assert exact <= estimate.tokens < exact + spec.tokens_per_step
    assert estimate.tokens % spec.tokens_per_step == 0
    steps = estimate.tokens // spec.tokens_per_step
    assert any(f"{stage} trains for 2 minutes, about {steps:,} steps" in note for note in plan.notes)
    assert any("not reproducible" in note for note in plan.notes)


def test_horizon_in_minutes_has_fewer_steps_if_activations_are_recomputed(compiled: Compile) -> None:
    """Recomputing activations repeats the forward pass, a third of the work: three quarters of the tokens remain."""
    plain, recomputed = (
        compiled("pretrain.horizon={minutes: 60}", *more).stage("pretrain").estimate.tokens
        for more in ((), ("run.activation_checkpointing=true",))
    )
    assert recomputed == pytest.approx(0.75 * plain, rel=1e-3)
