"""The plan as text and JSON."""

import json
from collections.abc import Callable

import pytest

from nanochat.plan.plan import Plan
from nanochat.plan.quantities import show_bytes, show_count, show_duration, show_flops, show_score
from nanochat.plan.specs.inputs import SftItem
from nanochat.plan.text.render import StageStatus, plan_to_json, render_plan

Compile = Callable[..., Plan]


def test_render_plan_fits_in_100_columns_and_shows_status_and_reason(compiled: Compile) -> None:
    plan = compiled("description=" + "a long story " * 30)
    statuses = {
        "tokenizer": StageStatus("cached", "done in stages/tokenizer/0123456789ab"),
        "sft": StageStatus("run", "changed: " + "sft.horizon.tokens: 400000 -> 300000; " * 5),
    }
    text = render_plan(plan, statuses)  # type: ignore[arg-type]
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "cached: done in stages/tokenizer/0123456789ab" in text
    assert "sft.horizon.tokens: 400000 -> 300000" in text
    assert text.endswith("\n") and not any(line != line.rstrip() for line in text.splitlines())


def test_total_leaves_out_stages_that_are_cached_or_skipped(compiled: Compile) -> None:
    """The README shows such a plan: a changed `sft` runs again, with the stages after it."""
    plan = compiled()
    statuses = {"tokenizer": StageStatus("cached"), "pretrain": StageStatus("cached"), "base_eval": StageStatus("skip")}
    text = render_plan(plan, statuses)  # type: ignore[arg-type]
    lines = {words[0]: words[1:] for line in text.splitlines() if len(words := line.split()) > 5}
    assert lines["pretrain"] == ["cached", "-", "-", "-", "-", "-"]
    assert lines["base_eval"] == ["skip", "-", "-", "-", "-", "-"]
    sft, chat = plan.stage("sft").estimate, plan.stage("chat_eval").estimate
    assert lines["total"][0] == show_count((sft.tokens or 0) + (chat.tokens or 0))
    to_run = plan_to_json(plan, statuses)["totals_to_run"]  # type: ignore[arg-type]
    assert isinstance(to_run, dict)
    assert to_run["seconds"] == pytest.approx((sft.seconds or 0) + (chat.seconds or 0))
    assert to_run["disk_bytes"] == sft.disk_bytes


def test_plan_says_why_the_disk_space_of_stages_does_not_add_up(compiled: Compile) -> None:
    """The checkpoints of pretraining are gone when those of fine-tuning are written. A single stage adds up."""
    note = "the total of disk space is the most in use at a time"
    assert note in render_plan(compiled(), {})
    alone = {name: StageStatus("cached") for name in ("tokenizer", "pretrain", "base_eval", "chat_eval")}
    assert note not in render_plan(compiled(), alone)  # type: ignore[arg-type]


def test_render_plan_names_sizes_steps_and_conditions(compiled: Compile) -> None:
    """4 blocks of 12 * 128^2, gates, two tables and two value tables of 2048 x 128, 8 multipliers: 1,835,144."""
    text = render_plan(compiled(), {})
    assert "model: 1,835,144 parameters, 7,275,264 training FLOPs per token" in text
    assert "367 steps of 4,096 tokens (16 rows) = 1,503,232 tokens of stdlib" in text
    assert "base_eval.bpb < 2" in text
    assert "98 steps of 4,096 tokens: spelling" in text


def test_plan_of_fine_tuning_names_and_reads_what_it_holds_out(compiled: Compile) -> None:
    """A held-out split is read like another task, all of it, and is not trained on."""
    plan = compiled("sft.data.spelling.validation.split=test", "sft.hand_on=best")
    text = " ".join(render_plan(plan, {}).split())
    assert "spelling; holds out some of spelling; passes on the model with the lowest validation loss" in text
    trained, held_out = plan.stage("sft").inputs
    assert isinstance(trained, SftItem) and isinstance(held_out, SftItem)
    assert (trained.split, trained.max_examples, trained.is_held_out) == ("train", 1000, False)
    assert (held_out.split, held_out.max_examples, held_out.is_held_out) == ("test", None, True)


def test_render_plan_names_a_horizon_in_minutes(compiled: Compile) -> None:
    text = render_plan(compiled("pretrain.horizon={minutes: 5}", "sft.horizon={minutes: 1}"), {})
    assert "5 minutes in steps of 4,096 tokens (16 rows) of stdlib;" in text
    assert "warm-down 40% of the time" in " ".join(text.split())
    assert "1 minute in steps of 4,096 tokens: spelling" in text


def test_render_plan_names_the_suites_during_training_and_their_share_of_the_time(compiled: Compile) -> None:
    """Pretraining: 367 steps of 4,096 tokens and 4 times 1M tokens, a forward pass each, at 40 GFLOP/s.

    A token has 7,275,264 FLOPs of training and a third in a forward pass, which takes 4/3 of that time on a CPU:
    273.4 s of training, 323.3 s of suites, and a second to start. Fine-tuning has 98 steps: 73.0 s, and suites once.
    """
    flags = ("run.monitor.evaluate.suites={text: {task: bpb}}", "run.monitor.evaluate.every_steps=100")
    plan = compiled(*flags, device_class="cpu", held_out_chars=lambda source: None)
    estimate = plan.stage("pretrain").estimate
    assert estimate.suite_seconds == pytest.approx(323.345, rel=1e-5)
    assert estimate.seconds == pytest.approx(1 + 273.4100 + 323.3451, rel=1e-5)
    text = " ".join(render_plan(plan, {}).split())
    assert "every 100 steps and at the end: text; about 5.39 min, 54% of its time" in text
    assert "--force" not in text
    cached = {"pretrain": StageStatus("cached", "finished")}
    again = "if it was cached without them, `--force pretrain` measures them cached: finished"
    assert again in " ".join(render_plan(plan, cached).split())  # type: ignore[arg-type]
    assert plan.stage("sft").estimate.suite_seconds == pytest.approx(80.8363, rel=1e-5)
    assert compiled().stage("pretrain").estimate.suite_seconds is None


def test_plan_adds_the_memory_of_suites_during_training_on_a_cpu(compiled: Compile) -> None:
    """Beside the process and the weights, which training has too: what base_eval adds to them on a suite of text."""
    flags = ("run.monitor.evaluate.suites={text: {task: bpb}}", "base_eval={samples: [], suites: {bpb: {tokens: 1M}}}")
    peaks = {stage.name: stage.estimate.peak_memory_bytes or 0 for stage in compiled(*flags).stages}
    alone = compiled().stage("pretrain").estimate.peak_memory_bytes or 0
    process = 100 * 2**20 + 1.25 * 4 * 1_835_144
    assert peaks["pretrain"] - alone == pytest.approx(peaks["base_eval"] - process, abs=1)


def test_render_plan_names_starting_weights(compiled: Compile) -> None:
    assert "starts from other-run" in render_plan(compiled("chat_eval.init_from=other-run"), {})


def test_plan_to_json_has_specs_identities_and_estimates(compiled: Compile) -> None:
    values = json.loads(json.dumps(plan_to_json(compiled(), {"sft": StageStatus("run", "why")}), allow_nan=False))
    by_name = {stage["stage"]: stage for stage in values["stages"]}
    assert by_name["sft"]["status"] == "run" and by_name["sft"]["why"] == "why"
    assert by_name["pretrain"]["spec"]["steps"] == 367
    assert by_name["pretrain"]["identity"]["fields"]["pretrain.horizon.steps"] == 367
    assert by_name["pretrain"]["estimate"]["parameters"] == 1_835_144
    assert values["expect"] == {"base_eval.bpb": "< 2"}


def test_quantities_have_three_digits_and_a_unit() -> None:
    assert [show_count(n) for n in (None, 0, 9_999, 15_000, 1_503_232, 600_047_616)] == [
        "-", "0", "9,999", "15.0K", "1.50M", "600M",
    ]  # fmt: skip
    assert [show_bytes(n) for n in (None, 12, 2**20, 25 * 2**30)] == ["-", "12 B", "1.00 MiB", "25.0 GiB"]
    assert [show_duration(n) for n in (None, 0.4, 89, 150, 7_200, 10 * 86_400)] == [
        "-", "0 s", "89 s", "2.50 min", "2.00 h", "10.0 days",
    ]  # fmt: skip
    assert show_flops(4.8134e17) == "4.81e17"


def test_show_score_has_standard_error_and_number_of_problems() -> None:
    assert show_score(0.75, 0.1234, 1_200) == "0.75 ± 0.12 (n 1,200)"
    assert show_score(1.23456789, None) == "1.235"
    assert show_score(1.23456789, None, digits=6) == "1.23457"
    assert show_score(71_254.0, None) == "71,254"
