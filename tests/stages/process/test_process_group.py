"""Training on several processes: same results as on one, stopping together, and the death of one process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from nanochat.data.sources.source_spec import SourceSpec
from nanochat.errors import InterruptedRun
from nanochat.optim.groups import OptimizerConfig
from nanochat.plan.specs.inputs import SftItem
from nanochat.plan.specs.suites import ChatSuiteSpec
from nanochat.plan.specs.training import RewardSpec, RlItem, RlSpec
from nanochat.stages import pretrain, sft
from nanochat.stages.rl import stage as rl
from nanochat.storage.layout import list_checkpoints

STEPS = 4
EXECUTION = {"device": "cpu", "validate_every_steps": 3, "validate_tokens": 64, "checkpoint_every_steps": 1}
SLOWLY = OptimizerConfig(lr_scale=0.01)
"""Muon and Adam normalise tiny gradients, so rounding errors grow with every step. Rates this small keep them small,
while a wrong gradient remains visible."""


def run_alone(context, stage):
    context.write_result(stage.run(context.job, context))
    return context


def start_together(context):
    """Start the context's job on two processes, as the runner does, and return their launcher."""
    job = context.job
    execution = job.execution.model_copy(update={"processes": 2, "collectives": "ring"})
    path = context.folder.job
    path.write_text(job.model_copy(update={"execution": execution}).model_dump_json())
    command = [sys.executable, "-m", "nanochat.runner.process.launcher", str(path)]
    with context.folder.log.open("ab") as log:
        return psutil.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def run_together(context):
    assert start_together(context).wait(timeout=300) == 0, context.folder.log.read_text()


def weights(folder):
    arrays = load_file(folder / "model.safetensors")
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)]).astype(np.float64)


def relative_distance(first, second):
    """Return the norm of the difference of two models' weights, relative to the first."""
    a, b = weights(first), weights(second)
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def values(folder, name):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"][name] for line in lines if name in line["metrics"]}


def assert_same(alone, together):
    """Require losses, gradients and weights that agree except for rounding: sums are in a different order."""
    for name in ("train/loss", "train/grad_norm"):
        expected = values(alone, name)
        assert len(expected) >= STEPS
        assert values(together, name) == pytest.approx(expected, rel=1e-5), name
    assert relative_distance(alone / "out" / "model", together / "out" / "model") < 1e-5


@pytest.fixture
def pretrain_spec(make_pretrain_spec):
    return make_pretrain_spec(steps=STEPS, sequence_len=64, optimizer=SLOWLY)


@pytest.fixture
def sft_spec(make_sft_spec):
    source = SourceSpec(name="words", builtin="spelling")
    item = SftItem(name="w", task="simple_spelling", source=source, split="train", max_examples=21, repeat=1)
    return make_sft_spec(item, epochs=2.0, optimizer=SLOWLY)


@pytest.mark.slow
def test_pretrain_resumes_with_a_different_number_of_processes(make_context, upstream, pretrain_spec):
    """One process trains to the middle, two to the end, then one again from before the end."""
    alone = run_alone(make_context(pretrain_spec, upstream=upstream, name="alone", **EXECUTION), pretrain)
    shared = make_context(pretrain_spec, upstream=upstream, name="shared", checkpoint_keep=9, **EXECUTION)
    # True after step 2, before it is saved.
    shared.should_stop = lambda: 1 in list_checkpoints(shared.folder.checkpoints)
    with pytest.raises(InterruptedRun):
        pretrain.run(shared.job, shared)
    run_together(shared)
    assert "resuming after step 2" in shared.folder.log.read_text()
    assert_same(alone.folder.path, shared.folder.path)
    assert values(shared.folder.path, "val/bpb") == pytest.approx(values(alone.folder.path, "val/bpb"), rel=1e-5)
    metrics = [json.loads((context.out / "result.json").read_text())["metrics"] for context in (alone, shared)]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-5)
    assert relative_distance(alone.out / "model", alone.folder.checkpoints / f"step_{STEPS - 1:08d}") > 1e-4

    shutil.rmtree(shared.out)
    shutil.rmtree(shared.folder.checkpoints / f"step_{STEPS:08d}")
    shared.should_stop = lambda: False
    run_alone(shared, pretrain)
    assert_same(alone.folder.path, shared.folder.path)


@pytest.mark.slow
def test_sft_on_two_processes_equals_sft_on_one(make_context, upstream, pretrain_spec, sft_spec):
    """Rows have different numbers of supervised tokens, so a mean of the processes' means would be a different loss."""
    first_step = pretrain_spec.model_copy(update={"steps": 1})
    base = run_alone(make_context(first_step, upstream=upstream, name="base", **EXECUTION), pretrain)
    options = {"upstream": {"pretrain": str(base.out)}, **EXECUTION}
    alone = run_alone(make_context(sft_spec, name="alone", **options), sft)
    shared = make_context(sft_spec, name="shared", **options)
    run_together(shared)
    assert_same(alone.folder.path, shared.folder.path)


@pytest.mark.slow
def test_rl_on_two_processes_equals_rl_on_one(make_context, upstream, pretrain_spec):
    """Each process samples the answers to its own questions; they are the answers that one process samples."""
    first_step = pretrain_spec.model_copy(update={"steps": 1})
    base = run_alone(make_context(first_step, upstream=upstream, name="base", **EXECUTION), pretrain)
    words = {"source": SourceSpec(name="words", builtin="spelling"), "task": "simple_spelling", "split": "train"}
    words |= {"num_samples": 1, "max_tokens": 4, "temperature": 0, "top_k": None}
    spec = RlSpec(
        data={"w": RlItem(suite=ChatSuiteSpec(max_problems=21, **words), weight=None)},
        held_out={"w": ChatSuiteSpec(max_problems=2, **words)},
        reward=RewardSpec(form="e", form_reward=1.0, length=0.5),
        optimizer=SLOWLY,
        steps=STEPS,
        epochs=None,
        prompts_per_step=4,
        samples_per_prompt=3,
        max_tokens=5,
        temperature=1.0,
        top_k=50,
        centre="group",
        scale="none",
        clip=0.2,
        updates_per_step=2,
        kl=0.1,
        constant_frac=1.0,
        final_frac=0.0,
        init_from=str(base.out / "model"),
        seed=3,
    )
    alone = run_alone(make_context(spec, name="alone", **EXECUTION), rl)
    shared = make_context(spec, name="shared", **EXECUTION)
    run_together(shared)
    assert_same(alone.folder.path, shared.folder.path)
    for name in ("train/reward", "train/kl", "train/no_signal_frac", "held_out/kl"):
        expected = values(alone.folder.path, name)
        assert values(shared.folder.path, name) == pytest.approx(expected, rel=1e-4, abs=1e-9), name


@pytest.fixture
def endless_job(make_context, upstream, make_pretrain_spec):
    """A job on two processes that has done some steps: its context, its launcher and the two processes."""
    spec = make_pretrain_spec(steps=100_000, sequence_len=64, optimizer=SLOWLY)
    context = make_context(spec, upstream=upstream, name="endless", device="cpu")
    launcher = start_together(context)
    steps = context.folder.metrics
    while not steps.exists() or len(steps.read_text().splitlines()) < 3:
        assert launcher.is_running() and launcher.status() != psutil.STATUS_ZOMBIE, context.folder.log.read_text()
        time.sleep(0.1)
    processes = [child for child in launcher.children() if "--join" in child.cmdline()]
    yield context, launcher, processes
    for process in (launcher, *processes):
        if process.is_running():
            process.kill()
    launcher.wait(timeout=60)


def error_message(context):
    return context.folder.error.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("signalled", ["launcher", "one process"])
def test_signal_to_one_process_stops_all_at_the_same_step(endless_job, signalled):
    context, launcher, processes = endless_job
    (launcher if signalled == "launcher" else processes[1]).send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60) == InterruptedRun.exit_code
    assert not any(process.is_running() for process in processes)
    (saved,) = list_checkpoints(context.folder.checkpoints)
    assert f"stopped after step {saved:,} of" in error_message(context)
    assert len(values(context.folder.path, "train/loss")) == saved


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "other_hangs"), [(0, False), (1, False), (0, True)])
def test_killed_process_ends_the_others_with_a_message(endless_job, rank, other_hangs):
    context, launcher, processes = endless_job
    if other_hangs:
        processes[1 - rank].suspend()
    processes[rank].kill()
    assert launcher.wait(timeout=60) == 4
    assert not any(process.is_running() for process in processes)
    assert "1 of the 2 processes that train pretrain together died without an error message" in error_message(context)


@pytest.mark.slow
def test_processes_end_when_their_launcher_is_killed(endless_job):
    _, launcher, processes = endless_job
    launcher.kill()
    gone, alive = psutil.wait_procs(processes, timeout=30)
    assert (len(gone), alive) == (2, [])


def test_preflight_error_names_the_process_that_does_not_see_the_folder(
    make_context, pretrain_spec, tmp_path, start_ring
):
    """The second process looks for the job in a missing folder, as on two hosts without a shared file system."""
    context = make_context(pretrain_spec, device="cpu")
    path = context.folder.job
    context.folder.exit_codes.mkdir()
    path.write_text(context.job.model_copy(update={"execution": context.job.execution}).model_dump_json())
    command = [sys.executable, "-m", "nanochat.stages"]
    jobs = (path, tmp_path / "elsewhere" / "job.json")
    processes = start_ring(*([*command, str(job), "--join", "ring"] for job in jobs))
    codes = [process.wait(timeout=120) for process in processes]
    assert "process 1 of 2 (counted from 0) do not see the stage's folder" in error_message(context), codes
    assert [ending.read_text() for ending in context.folder.exit_codes.iterdir()] == ["3\n"]
