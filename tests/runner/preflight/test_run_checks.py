"""Tests that preflight reports every problem at once, with what to change."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest

from nanochat import runtime
from nanochat.errors import PreflightError
from nanochat.export.trial import CHECKED_FORMATS
from nanochat.plan.estimate.memory import sizes
from nanochat.runner.preflight import run_checks as preflight
from nanochat.tools.sandbox import run as sandbox


def refusal(bench, *overrides, **changes) -> str:
    with pytest.raises(PreflightError) as caught:
        bench.run(*overrides, **changes)
    assert bench.calls() == []
    return str(caught.value)


def test_preflight_reports_data_disk_memory_time_and_store_together(bench, monkeypatch):
    """Every problem is reported once."""
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    monkeypatch.setattr("nanochat.runner.preflight.tracking_checks.os.access", lambda *_: False)
    (bench.folder / "text.txt").unlink()
    text = refusal(
        bench, "run.limits={memory: 1M, minutes: 0.001}", "tracking={kind: mlflow, uri: 'sqlite:////nowhere/mlflow.db'}"
    )
    assert text.startswith("9 problems to fix before the run can start:\n")
    found = re.findall(r"^  - (\w+)", text, re.MULTILINE)
    assert found == ["source", "disk", *["memory"] * 5, "time", "tracking"]  # memory: one problem for each stage


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_micro_batch_that_is_too_large_is_refused_with_one_that_fits(bench, stage):
    """The suggested size divides the 64 rows of a step, and the command runs with it."""
    shape = ("pretrain.tokens_per_step=2048", "sft.tokens_per_step=2048", "model.n_embd=256")
    stages = {"pretrain": ("base_eval=null", "sft=null", "chat_eval=null"), "sft": ("base_eval=null", "chat_eval=null")}
    if stage == "sft":
        bench.run(*shape, *stages[stage], last="pretrain")
        bench.calls()
    limit = "run.limits.memory=150M"
    text = refusal(bench, *shape, *stages[stage], "run.micro_batch_size=64", limit)
    match = re.search(
        rf"memory: {stage} needs about .*, but the limit is 150 MiB; set `run.micro_batch_size: (\d+)`", text
    )
    assert match is not None, text
    assert 64 % int(match[1]) == 0 and int(match[1]) < 64
    bench.run(*shape, *stages[stage], f"run.micro_batch_size={match[1]}", limit)
    assert stage in bench.calls()


def test_automatic_micro_batch_is_not_refused(bench):
    """The limit is the one under which 64 rows are refused."""
    bench.run("pretrain.tokens_per_step=2048", "model.n_embd=256", "run.limits.memory=150M", last="pretrain")
    assert bench.calls() == ["tokenizer", "pretrain"]


def test_memory_of_a_model_from_init_from_is_checked(bench):
    """The recipe has no `model`, so its size comes from the weights that SFT starts from."""
    bench.run("model.n_embd=256", last="pretrain")
    bench.calls()
    (stored,) = (bench.base / "stages" / "pretrain").glob("*/out/model")
    model = shutil.copytree(stored, bench.folder / "model")
    (model / "config.json").write_text(
        '{"format": 1, "model": {"sequence_len": 512, "vocab_size": 300, "n_layer": 4, "n_embd": 1024, "n_head": 8,'
        ' "n_kv_head": 8, "window_pattern": "SSSL"}}'
    )
    gone = ("tokenizer=null", "model=null", "pretrain=null", "base_eval=null", "chat_eval=null")
    given = (f"sft.init_from={model}", "sft.tokens_per_step=32768", "run.micro_batch_size=64")
    plan = bench.prepare(*gone, *given).plan
    assert plan.stage("sft").estimate.parameters == 4 * 12 * 1024**2 + 4 * 320 * 1024 + 2 * 8 * 32 + 8
    text = refusal(bench, *gone, *given, "run.limits.memory=2G")
    assert re.search(
        r"memory: sft needs about [\d.]+ GiB, but the limit is 2.00 GiB; set `run.micro_batch_size: \d+`", text
    )


def test_tokenizer_estimate_uses_the_size_of_local_files(bench):
    """The 690 bytes on disk count, not the 2e9 characters that the recipe allows."""
    estimate = bench.prepare().plan.stage("tokenizer").estimate
    assert 0 < estimate.peak_memory_bytes - sizes.PROCESS_BYTES["float32"] < 2**20
    assert estimate.seconds == pytest.approx(1, abs=0.01)


def test_memory_limit_includes_the_limit_of_the_container(tmp_path, monkeypatch):
    """The files of both cgroup versions are read, and `max` means no limit."""
    files = (tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes", tmp_path / "not there")
    monkeypatch.setattr(runtime, "_CONTAINER_LIMITS", files)
    files[0].write_text("max\n")
    assert runtime.container_memory_bytes() is None
    files[1].write_text("1073741824\n")
    assert preflight.memory_limit(None, "cpu") == 2**30
    assert preflight.memory_limit(2**40, "cpu") == 2**40


def test_memory_limit_of_a_gpu_comes_from_its_driver(tmp_path, monkeypatch):
    """It is unknown if there is no driver."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert preflight.memory_limit(None, "cuda") == 81559 * 2**20
    assert preflight.memory_limit(123, "cuda") == 123
    program.write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    assert preflight.memory_limit(None, "cuda") is None
    program.unlink()
    assert preflight.memory_limit(None, "cuda") is None


def test_hostfile_with_a_wrong_number_of_hosts_is_refused(bench):
    (bench.folder / "hosts.json").write_text('[{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}]')
    hosts = f"run.distributed.hostfile={bench.folder}/hosts.json"
    text = refusal(bench, "run.device=cpu", "run.distributed.processes=2", hosts)
    assert "`run.distributed.processes` is 2, but the hostfile" in text
    assert "has 1 entry; it needs one for each process" in text
    missing = refusal(bench, "run.device=cpu", "run.distributed.processes=2", f"{hosts}x")
    assert "hosts.jsonx cannot be read: No such file or directory" in missing


def test_processes_on_one_machine_divide_its_memory(bench, monkeypatch):
    monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda: type("Memory", (), {"total": 200 * 2**20})())
    only = ("base_eval=null", "sft=null", "chat_eval=null", "run.device=cpu", "run.micro_batch_size=1")
    bench.run(*only)
    bench.calls()
    text = refusal(bench, *only, "seed=2", "run.distributed.processes=2")
    assert re.search(r"memory: pretrain needs about .*, but the limit is 100 MiB", text), text


def test_run_loads_the_recipe_and_compiles_the_plan_once(bench, monkeypatch):
    """This holds even if inputs are missing."""
    (bench.folder / "text.txt").unlink()
    calls = []
    for name in ("nanochat.recipe.load.validate", "nanochat.runner.preflight.prepare.compile_plan"):
        module, _, attribute = name.rpartition(".")
        original = getattr(sys.modules[module], attribute)

        def counted(*arguments, _name=name, _original=original, **options):
            calls.append(_name)
            return _original(*arguments, **options)

        monkeypatch.setattr(name, counted)
    assert "text.txt" in refusal(bench)
    assert calls == ["nanochat.recipe.load.validate", "nanochat.runner.preflight.prepare.compile_plan"]


@pytest.fixture
def no_isolation(monkeypatch):
    """A machine without any way to isolate programs."""
    monkeypatch.setattr(sandbox, "_CANDIDATES", {})
    sandbox._try_isolations.cache_clear()
    yield
    sandbox._try_isolations.cache_clear()


def test_suite_that_runs_programs_is_refused_without_isolation(bench, no_isolation):
    """The message says where the suite is and what to do. Without the suite, or if it is accepted, the run begins."""
    row = {"task_id": "x", "prompt": "def f():\n", "canonical_solution": "    1\n", "test": "", "entry_point": "f"}
    (bench.folder / "programs.jsonl").write_text(json.dumps(row) + "\n")
    text = bench.recipe.read_text() + "run: {}\n"
    text = text.replace("  words:", "  programs: {path: programs.jsonl}\n  words:")
    text = text.replace("tracking:", "    code: {task: humaneval, source: programs}\ntracking:")
    bench.recipe.write_text(text)
    line = text.splitlines().index("    code: {task: humaneval, source: programs}") + 1
    message = refusal(bench)
    assert f"{bench.recipe}:{line}: chat_eval.suites.code: this machine cannot isolate programs" in message
    assert "set `run.accept_unisolated_programs: true`" in message
    bench.run("chat_eval.suites.code=null")
    assert "chat_eval" in bench.calls()
    bench.run("run.accept_unisolated_programs=true")
    assert bench.calls() == ["chat_eval"]


def test_packages_that_a_check_of_exports_needs_are_named(bench, monkeypatch):
    """Without the check nothing is needed."""
    monkeypatch.setattr(preflight, "missing_packages", lambda form: list(CHECKED_FORMATS.get(form, ())))
    text = refusal(bench, "export={formats: {mlx: {}, hf: {}, torch: {}}, check: {prompts: [hi]}}")
    assert "export.check" in text and "mlx_lm and transformers and torch must be installed" in text
    assert "pip install 'nanochat-run[export]'" in text
    bench.run("export={formats: {mlx: {}}}")
    assert "export" in bench.calls()
