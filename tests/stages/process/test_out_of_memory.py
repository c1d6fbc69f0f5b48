"""Rows per forward pass after memory ran out: fewer of them, equal results, and the same for all processes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from nanochat.errors import OUT_OF_MEMORY
from nanochat.optim.groups import OptimizerConfig
from nanochat.plan.estimate.memory.sizes import TrainingMemory
from nanochat.plan.estimate.memory.training import training_memory
from nanochat.stages import pretrain
from nanochat.stages.process.context import NOTE_PREFIX
from nanochat.stages.process.process_group import ProcessGroup
from nanochat.stages.training import micro_batch

SLOWLY = OptimizerConfig(lr_scale=0.01)
"""Muon and Adam normalise tiny gradients, so rounding errors grow with every step. Rates this small keep them small."""
_ADDRESS_SPACE = """
from nanochat import runtime
runtime.prepare("cpu")
import nanochat.stages.pretrain, mlx.core as mx
mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSize:")))
"""


def weights(context):
    arrays = load_file(context.out / "model" / "model.safetensors")
    return np.concatenate([arrays[name].ravel() for name in sorted(arrays)]).astype(np.float64)


@pytest.mark.parametrize(("of", "halvings", "used"), [(12, 0, 12), (12, 1, 6), (12, 2, 3), (12, 3, 1), (7, 1, 1)])
def test_rows_are_halved_to_a_number_that_divides_the_rows_of_a_step(
    make_context, make_pretrain_spec, of, halvings, used
):
    """Each halving gives the largest divisor that is at most half of the one before."""
    spec = make_pretrain_spec(steps=1)
    context = make_context(spec, batch_halvings=halvings)
    assert micro_batch.choose_micro_batch(context, spec.model, sequence_len=16, rows=of) == used
    assert json.loads(context.folder.progress.read_text())["micro_batch_size"] == used


def test_halvings_do_not_change_rows_that_the_recipe_fixes(make_context, make_pretrain_spec):
    spec = make_pretrain_spec(steps=1)
    context = make_context(spec, batch_halvings=2, micro_batch_size=8)
    assert micro_batch.choose_micro_batch(context, spec.model, sequence_len=16, rows=12) == 8


def test_all_processes_use_the_smallest_number_that_one_of_them_chose(make_context, make_pretrain_spec, monkeypatch):
    """A host with less memory than the others decides."""
    spec = make_pretrain_spec(steps=1)
    context = make_context(spec, batch_halvings=1)
    monkeypatch.setattr(ProcessGroup, "gather", lambda group, value: [value, 6, 12])
    assert micro_batch.choose_micro_batch(context, spec.model, sequence_len=16, rows=12) == 3


def test_halved_rows_give_the_same_model_and_the_log_says_so(make_context, make_pretrain_spec, upstream, capsys):
    """The sums of gradients have a different order, so the weights differ by rounding."""
    spec = make_pretrain_spec(steps=3, optimizer=SLOWLY)
    trained = {}
    for halvings in (0, 2):
        context = make_context(spec, name=f"halved{halvings}", upstream=upstream, batch_halvings=halvings)
        context.write_result(pretrain.run(context.job, context))
        trained[halvings] = weights(context)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith(NOTE_PREFIX)]
    assert len(notes) == 1 and "uses 1 of its 4 rows per forward pass instead of 4" in notes[0]
    assert "4 passes and as many tokens as before" in notes[0]
    distance = np.linalg.norm(trained[0] - trained[2]) / np.linalg.norm(trained[0])
    assert 0 < distance < 1e-5


def test_memory_that_the_system_refuses_raises_before_mlx_crashes(make_context, make_pretrain_spec, monkeypatch):
    """An address space of 47 bits cannot hold 2**50 bytes, with whatever limit."""
    spec = make_pretrain_spec(steps=1)
    monkeypatch.setattr(TrainingMemory, "peak", lambda memory, rows, *, accumulates: 2**50)
    with pytest.raises(MemoryError, match="the system refuses"):
        micro_batch.choose_micro_batch(make_context(spec, micro_batch_size=1), spec.model, sequence_len=16, rows=4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and macOS has no limit on the address space")
def test_processes_that_train_together_run_out_of_memory_and_fit_with_fewer_rows(
    make_context, make_pretrain_spec, upstream
):
    """Under a limit on the address space, 32 rows end with the exit code for want of memory, and 16 rows finish."""
    spec = make_pretrain_spec(steps=1, sequence_len=256)
    shape = {"n_layer": 8, "n_head": 2, "n_kv_head": 2, "n_embd": 128}
    spec = spec.model_copy(update={"model": dataclasses.replace(spec.model, **shape), "tokens_per_step": 32 * 256 * 2})
    memory = training_memory(spec.model, sequence_len=256, dtype="float32")
    free = subprocess.run([sys.executable, "-c", _ADDRESS_SPACE], capture_output=True, text=True, check=True)
    limit = int(free.stdout) + memory.peak(32, accumulates=False) // 1024  # 32 rows need more, 16 much less
    codes = []
    for halvings in (0, 1):
        context = make_context(
            spec, upstream=upstream, device="cpu", processes=2, collectives="ring", batch_halvings=halvings
        )
        context.folder.job.write_text(context.job.model_dump_json())
        command = f"ulimit -v {limit}; exec {sys.executable} -m nanochat.runner.process.launcher {context.folder.job}"
        with context.folder.log.open("ab") as log:
            codes.append(
                subprocess.run(["bash", "-c", command], stdout=log, stderr=log, stdin=subprocess.DEVNULL).returncode
            )
        assert json.loads(context.folder.progress.read_text())["micro_batch_size"] == 32 >> halvings
    assert codes == [OUT_OF_MEMORY, 0], context.folder.log.read_text()
