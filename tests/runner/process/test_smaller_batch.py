"""A stage that runs out of memory continues with half of its batch, if nanochat chose the batch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from nanochat.errors import InterruptedRun, StageError
from nanochat.plan.estimate.memory.training import training_memory
from nanochat.runner.pipeline import run_recipe
from nanochat.runner.process import memory_evidence
from nanochat.runner.process.memory_evidence import MemoryEvidence


def halvings(folder):
    return json.loads(folder.job.read_text())["execution"]["batch_halvings"]


@pytest.mark.parametrize("ending", ["error", "Metal"])
def test_automatic_rows_are_halved_until_they_fit_and_the_run_finishes(bench, ending):
    """The child of this test has 8 rows per pass and holds 2. Every attempt has the same fingerprint."""
    bench.control(pretrain=f"holds 2, then {ending}")
    run = bench.run()
    assert bench.calls() == ["tokenizer", *3 * ["pretrain"], "base_eval", "sft", "chat_eval"]
    assert re.findall(
        r"2-pretrain: ran out of memory with (\d) rows per forward pass; it starts again", bench.display.text
    ) == ["8", "4"]
    record = run.records(bench.base)["pretrain"]
    assert (record.planned.micro_batch_size, record.measured.micro_batch_size) == (2, 2)
    assert halvings(bench.stage_folder("pretrain")) == 2
    assert halvings(bench.stage_folder("sft")) == 0


def test_report_shows_the_rows_planned_and_used(bench):
    bench.control(pretrain="holds 1, then error")
    report = bench.run().folder.report.read_text()
    (row,) = (line for line in report.splitlines() if line.startswith("| 2-pretrain | finished"))
    header = next(line for line in report.splitlines() if line.startswith("| stage | status | time"))
    cells = dict(zip(header.split("|"), row.split("|"), strict=True))
    assert cells[" rows "] == " 1 "
    assert [cell.strip() for cell in row.split("|")][7:9] == ["1", "2"]


def test_fixed_rows_are_never_changed(bench):
    bench.control(pretrain="holds 2, then error")
    with pytest.raises(StageError, match=r"set `run.micro_batch_size: 2` \(now 4\)"):
        bench.run("run.micro_batch_size=4")
    assert bench.calls() == ["tokenizer", "pretrain"]


def test_one_row_that_does_not_fit_ends_the_run_and_says_what_to_do(bench):
    bench.control(pretrain="holds 0, then error")
    with pytest.raises(StageError, match=r"not even one row per forward pass fits: set `run\.activation_checkpointing"):
        bench.run()
    assert bench.calls() == ["tokenizer", *4 * ["pretrain"]]
    with pytest.raises(StageError, match="not even one row per forward pass fits: use a smaller model"):
        bench.run("run.activation_checkpointing=true")


def test_process_killed_by_somebody_else_is_not_halved(bench):
    """SIGKILL alone does not mean that memory ran out, and neither does a crash without a message."""
    for ending in ("SIGKILL", "SIGABRT"):
        bench.control(pretrain=f"holds 2, then {ending}")
        with pytest.raises(StageError, match=f"died of {ending}"):
            bench.run()
        assert bench.calls().count("pretrain") == 1
    assert halvings(bench.stage_folder("pretrain")) == 0


def test_kernel_counter_tells_a_kill_for_want_of_memory_from_another(bench, tmp_path, monkeypatch):
    """The counter rises between the reading at the start of the child and the one after its end."""
    counters = tmp_path / "vmstat"
    readings = iter(range(100))
    monkeypatch.setattr(MemoryEvidence, "_count_kills", lambda evidence: next(readings))
    bench.control(pretrain="holds 2, then SIGKILL")
    bench.run()
    assert bench.calls().count("pretrain") == 3
    monkeypatch.undo()
    counters.write_text("nr_free_pages 7\noom_kill 3\n")
    evidence = MemoryEvidence(tmp_path / "log", counters=counters)
    assert not evidence.kernel_killed()
    counters.write_text("nr_free_pages 7\noom_kill 4\n")
    assert evidence.kernel_killed()


def test_kernel_kills_long_before_the_end_do_not_count(tmp_path, monkeypatch):
    """On a busy machine the kernel may have killed something else an hour ago."""
    counters, now = tmp_path / "vmstat", iter([0.0, 1.0, 100.0, 101.0])
    monkeypatch.setattr(memory_evidence.time, "monotonic", lambda: next(now))
    counters.write_text("oom_kill 3\n")
    evidence = MemoryEvidence(tmp_path / "log", counters=counters)
    counters.write_text("oom_kill 4\n")
    evidence.watch()
    assert evidence.kernel_killed()
    evidence.watch()
    evidence.watch()
    assert not evidence.kernel_killed()


def test_text_of_an_earlier_attempt_in_the_log_is_no_evidence(tmp_path):
    log = tmp_path / "log"
    log.write_text("pretrain: out of memory\n")
    evidence = MemoryEvidence(log)
    assert not evidence.log_says_so()
    with log.open("a") as file:
        file.write("terminate called after throwing an instance of 'std::bad_alloc'\n")
    assert evidence.log_says_so()


def test_evaluation_is_halved_down_to_single_rows(bench):
    bench.control(chat_eval="holds 2, then error")
    bench.run("run.micro_batch_size=4")
    assert bench.calls().count("chat_eval") == 2  # 4, 2: the fake child takes its batch from the same field
    assert "ran out of memory; it continues after the last finished suite" in bench.display.text
    bench.control(base_eval="holds -1, then error")
    with pytest.raises(StageError, match="use a smaller model or a shorter"):
        bench.run(force=("base_eval",))
    assert bench.calls() == 6 * ["base_eval"]  # 32 rows are generated at a time: 32, 16, 8, 4, 2, 1


def test_interrupted_stage_resumes_with_the_rows_that_fit(bench):
    """The plan says so. Another memory setting makes void what was learned."""
    bench.control(pretrain="holds 2, then error and wait")

    def interrupt(_title):
        if halvings(bench.stage_folder("pretrain")) == 2 and bench.stage_folder("pretrain").progress.exists():
            os.kill(os.getpid(), signal.SIGINT)

    bench.display.on_progress = interrupt
    with pytest.raises(InterruptedRun, match="stopped at step 2"):
        run_recipe(bench.load(), bench.request(), bench.display)
    assert bench.calls().count("pretrain") == 3
    reasons = [
        next(look.reason for look in bench.prepare(*changes).look_up_cache() if look.stage.name == "pretrain")
        for changes in ((), ("run.activation_checkpointing=true",), ("run.micro_batch_size=4",))
    ]
    assert ["1/4 of rows" in reason for reason in reasons] == [True, False, False]
    bench.control(pretrain="holds 2, then error")
    run = bench.run()
    assert (
        "2-pretrain: resumes, it was interrupted; the newest checkpoint is from step 2; memory ran out, so it "
        in bench.display.text
    )
    assert bench.calls() == ["pretrain", "base_eval", "sft", "chat_eval"]
    assert run.records(bench.base)["pretrain"].measured.micro_batch_size == 2


_ADDRESS_SPACE = """
from nanochat import runtime
runtime.prepare("cpu")
import nanochat.stages.pretrain, mlx.core as mx
mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize:")))
"""
_ULIMIT = 'ulimit -v {kib}; exec "{python}" -m nanochat.stages "$0"'


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no limit on the address space")
def test_real_run_under_a_low_limit_halves_its_rows_and_finishes(bench):
    """It was interrupted without the limit, so it continues after its checkpoint. The weights differ by rounding."""
    (bench.folder / "text.txt").write_text("".join(f"hello world {i}, once more\n" for i in range(3000)))
    shape = "model={n_layer: 6, n_embd: 128, n_head: 2, sequence_len: 256, window_pattern: L}"
    changes = (shape, "pretrain.tokens_per_step=8192", "pretrain.optimizer.lr_scale=0.01", "run.device=cpu")

    def run(kib, base, **wishes):
        command = ("bash", "-c", _ULIMIT.format(kib=kib, python=sys.executable))
        request = replace(bench.request(last="base_eval", **wishes), child_command=command, base=base)
        return run_recipe(bench.load(*changes), request, bench.display)

    undisturbed = run("unlimited", bench.folder / "other").records(bench.folder / "other")
    once = iter([signal.SIGINT])

    def interrupt(title):
        if title == "2-pretrain" and bench.stage_folder("pretrain").metrics.exists():
            os.kill(os.getpid(), next(once, 0))

    bench.display.on_progress = interrupt
    with pytest.raises(InterruptedRun, match="stopped after step"):
        run("unlimited", bench.base)
    bench.display = bench.make_display()
    model = bench.prepare(*changes).plan.stages[1].spec.model
    free = subprocess.run([sys.executable, "-c", _ADDRESS_SPACE], capture_output=True, text=True, check=True)
    needed = training_memory(model, sequence_len=256, dtype="float32").peak(32, accumulates=False)
    records = run(int(free.stdout) + needed // 1024, bench.base).records(bench.base)
    said = [line for line in bench.display.lines if line.startswith("2-pretrain: ")]
    assert re.search(r"ran out of memory with 32 rows per forward pass; it continues after step \d", said[1])
    assert "uses 16 of its 32 rows per forward pass instead of 32, because memory ran out" in said[2]
    assert re.fullmatch(r"2-pretrain: resuming after step \d", said[3])
    pretrain = records["pretrain"]
    assert (pretrain.planned.micro_batch_size, pretrain.measured.micro_batch_size) == (32, 16)
    assert pretrain.fingerprint == undisturbed["pretrain"].fingerprint
    assert records["base_eval"].metrics["bpb"] == pytest.approx(undisturbed["base_eval"].metrics["bpb"], rel=1e-5)
