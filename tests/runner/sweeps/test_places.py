"""Where cells run: several at a time here, on a GPU each, on other hosts, and one per job of a scheduler."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from nanochat.cli.run import main
from nanochat.errors import PreflightError
from nanochat.runner.sweeps.preparing.prepared import prepare_sweep
from nanochat.runner.sweeps.running.slots import choose_slots

TWO = "sweep:\n  over: {pretrain.horizon.steps: [4, 5]}\n  until: pretrain\n"


def slots_of(sweep, lines):
    sweep.write(TWO + lines)
    return choose_slots(prepare_sweep(sweep.bench.load(), sweep.bench.base))


def test_each_cell_at_a_time_has_a_gpu_of_its_own(sweep, monkeypatch):
    monkeypatch.setattr("nanochat.runner.preflight.prepare.guess_device_class", lambda: "cuda")
    monkeypatch.setattr("nanochat.runner.sweeps.running.slots.gpu_memories", lambda: [80 * 2**30] * 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    own = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert [slot.environment for slot in slots_of(sweep, "  parallel: auto\n")] == own
    assert [slot.environment for slot in slots_of(sweep, "")] == [{}]
    with pytest.raises(PreflightError, match=r"tiny.yaml:\d+: `sweep.parallel` is 3, but this machine has 2 GPUs"):
        slots_of(sweep, "  parallel: 3\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    chosen = slots_of(sweep, "  parallel: 3\n")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in chosen] == ["5", "6"]


def test_on_a_cpu_memory_and_cores_limit_the_cells_at_a_time(sweep, monkeypatch):
    monkeypatch.setattr("nanochat.runner.sweeps.running.slots.os.sched_getaffinity", lambda pid: range(8))
    assert len(slots_of(sweep, "  parallel: auto\n")) == 2
    sweep.bench.recipe.write_text("run: {threads: 8}\n" + sweep.bench.recipe.read_text())
    assert len(slots_of(sweep, "  parallel: auto\n")) == 1
    sweep.bench.recipe.write_text(sweep.bench.recipe.read_text().replace("{threads: 8}", "{limits: {memory: 200M}}"))
    with pytest.raises(PreflightError, match=r"2 cells at a time need about .* but the limit is 200 MiB"):
        slots_of(sweep, "  parallel: 2\n")


def test_cells_at_a_time_share_stages_and_all_are_run(sweep, calls):
    sweep.write(TWO + "  parallel: 2\n")
    sweep.run()
    assert sorted(calls()) == ["pretrain", "pretrain", "tokenizer"]
    assert [result.status for result in sweep.results()] == ["finished", "finished"]


@pytest.fixture
def real_cells(sweep, monkeypatch):
    """Let `nanochat-run` use the child that pretends, and a stand-in for the program that starts it."""
    folder = sweep.bench.folder
    launcher = folder / "bin"
    launcher.mkdir()
    program = f"""#!{sys.executable}
import sys
import nanochat.runner.process.child as child
command = ({sys.executable!r}, "-S", {str(sweep.bench.child)!r})
import nanochat.runner.sweeps.running.cell_runner as run
run.SweepRequest.__dataclass_fields__["child_command"].default = command
run.SweepRequest.__init__.__kwdefaults__["child_command"] = command
from nanochat.cli.run import main
sys.exit(main(sys.argv[1:]))
"""
    (launcher / "nanochat-run").write_text(program)
    (launcher / "nanochat-run").chmod(0o755)
    monkeypatch.setenv("PATH", f"{launcher}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(sweep.bench.base))
    monkeypatch.chdir(folder)
    return launcher


def test_the_script_for_slurm_is_valid_and_each_job_runs_its_cell(sweep, calls, real_cells, capsys):
    sweep.write(TWO)
    assert main(["sweep", "tiny.yaml", "--emit", "slurm"]) == 0
    script = sweep.bench.folder / "job.sh"
    script.write_text(capsys.readouterr().out)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    sbatch = real_cells / "sbatch"
    sbatch.write_text(
        "#!/bin/bash\n# Runs each job of the array, as Slurm does, one after another.\n"
        "array=$(sed -n 's/^#SBATCH --array=//p' \"$1\")\n"
        'for i in $(seq "${array%%-*}" "$(cut -d- -f2 <<<"${array%%\\%*}")"); do\n'
        '  SLURM_ARRAY_TASK_ID=$i bash "$1" || exit $?\ndone\n'
    )
    sbatch.chmod(0o755)
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert calls() == ["tokenizer", "pretrain", "pretrain"]
    assert [result.status for result in sweep.results()] == ["finished", "finished"]


def test_cells_run_on_the_hosts_of_a_hostfile_with_their_exit_codes(sweep, calls, real_cells, monkeypatch):
    hosts = sweep.bench.folder / "hosts.json"
    hosts.write_text(json.dumps([{"ssh": "first"}, {"ssh": "second"}]))
    sweep.write(TWO + "  hostfile: hosts.json\n")
    ssh = real_cells / "ssh"
    program = f"""#!{sys.executable} -S
import os, pathlib, sys
host, line = sys.argv[-2:]
with open({str(sweep.bench.folder / "hosts.txt")!r}, "a") as file:
    file.write(host + "\\n")
here = {str(real_cells / "nanochat-run")!r}
os.execvp("bash", ["bash", "-c", line.replace({f"{sys.executable} -m nanochat.cli.run"!r}, here)])
"""
    ssh.write_text(program)
    ssh.chmod(0o755)
    sweep.bench.control(pretrain="fail", only='"steps": 5')
    with pytest.raises(Exception, match=r"cell 2: on (first|second): ") as caught:
        sweep.run()
    assert caught.value.exit_code == 4
    assert sorted((sweep.bench.folder / "hosts.txt").read_text().split()) == ["first", "second"]
    assert sorted(calls()) == ["pretrain", "pretrain", "tokenizer"]
    assert [result.status for result in sweep.results()] == ["finished", "failed"]
