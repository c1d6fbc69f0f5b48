"""Where cells run: several at a time here, on a GPU each, on other hosts, and one per job of a scheduler."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from nanochat.cli.run import main
from nanochat.errors import PreflightError, StageError
from nanochat.runner.sweeps.preparing.prepare_sweep import prepare_sweep
from nanochat.runner.sweeps.running.slots import choose_slots

TWO = "sweep:\n  over: {pretrain.horizon.steps: [4, 5]}\n  until: pretrain\n"


def slots_of(sweep, lines):
    sweep.write(TWO + lines)
    return choose_slots(prepare_sweep(sweep.bench.load(), sweep.bench.base))


def test_cells_at_a_time_are_spread_over_the_gpus(sweep, monkeypatch):
    monkeypatch.setattr("nanochat.runner.preflight.prepare.guess_device_class", lambda: "cuda")
    for module in ("sweeps.running.slots", "preflight.run_checks"):
        monkeypatch.setattr(f"nanochat.runner.{module}.gpu_memories", lambda: [80 * 2**30] * 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    own = [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert [slot.environment for slot in slots_of(sweep, "  parallel: auto\n")] == own
    assert [slot.environment for slot in slots_of(sweep, "")] == [{}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    chosen = slots_of(sweep, "  parallel: 3\n")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in chosen] == ["5", "6"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    chosen = slots_of(sweep, "  parallel: 2\n")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in chosen] == ["5", "5"]
    assert [slot.memory_bytes for slot in chosen] == [32 * 2**30] * 2, "half of 0.8 of the GPU each"
    assert [slot.memory_bytes for slot in slots_of(sweep, "  parallel: 1\n")] == [None]
    sweep.bench.recipe.write_text("run: {limits: {memory: 20M}}\n" + sweep.bench.recipe.read_text())
    with pytest.raises(PreflightError, match=r"2 cells at a time on a GPU need about .*`sweep.parallel: 1`"):
        slots_of(sweep, "  parallel: 2\n")


def test_on_a_cpu_memory_and_cores_limit_the_cells_at_a_time(sweep, monkeypatch):
    monkeypatch.setattr("nanochat.runner.sweeps.running.slots.os.sched_getaffinity", lambda pid: range(8))
    assert len(slots_of(sweep, "  parallel: auto\n")) == 2
    sweep.bench.recipe.write_text("run: {threads: 8}\n" + sweep.bench.recipe.read_text())
    assert len(slots_of(sweep, "  parallel: auto\n")) == 1
    sweep.bench.recipe.write_text(sweep.bench.recipe.read_text().replace("{threads: 8}", "{limits: {memory: 200M}}"))
    with pytest.raises(PreflightError, match=r"2 cells at a time need about .* but the limit is 200 MiB"):
        slots_of(sweep, "  parallel: 2\n")


def test_cells_at_a_time_share_the_memory_that_the_recipe_allows(sweep):
    """So that `micro_batch_size: auto` of each does not choose as many rows as fit alone."""
    sweep.bench.recipe.write_text("run: {limits: {memory: 3G}}\n" + sweep.bench.recipe.read_text())
    sweep.write(TWO + "  parallel: 2\n")
    sweep.run()
    jobs = [json.loads(path.read_text()) for path in sweep.bench.base.glob("stages/pretrain/*/job.json")]
    assert [job["execution"]["memory_limit_bytes"] for job in jobs] == [3 * 2**29] * 2


def test_cells_at_a_time_share_stages_and_all_are_run(sweep, calls):
    sweep.write(TWO + "  parallel: 2\n")
    sweep.run()
    assert sorted(calls()) == ["pretrain", "pretrain", "tokenizer"]
    assert [result.status for result in sweep.results()] == ["finished", "finished"]


def write_program(path, lines):
    path.write_text(lines)
    path.chmod(0o755)


@pytest.fixture
def programs(sweep, monkeypatch):
    """A folder of programs that are found before the others. `nanochat-run` there writes how it was called."""
    folder = sweep.bench.folder / "bin"
    folder.mkdir()
    write_program(folder / "nanochat-run", '#!/bin/bash\necho "$PWD $NANOCHAT_BASE_DIR $@" >>"$(dirname "$0")/calls"\n')
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(sweep.bench.base))
    monkeypatch.chdir(sweep.bench.folder)
    return folder


@pytest.fixture
def sbatch(programs):
    """A stand-in for Slurm that runs the jobs of an array one after another."""
    write_program(
        programs / "sbatch",
        "#!/bin/bash\narray=$(sed -n 's/^#SBATCH --array=//p' \"$1\")\n"
        'for i in $(seq "${array%%-*}" "$(cut -d- -f2 <<<"${array%%\\%*}")"); do\n'
        '  SLURM_ARRAY_TASK_ID=$i bash "$1" || exit $?\ndone\n',
    )


def write_script(sweep, capsys):
    sweep.write(TWO)
    assert main(["sweep", "tiny.yaml", "--emit", "slurm"]) == 0
    script = sweep.bench.folder / "job.sh"
    script.write_text(capsys.readouterr().out)
    return script


def test_the_script_for_slurm_is_valid_and_each_job_is_a_cell(sweep, programs, sbatch, capsys):
    script = write_script(sweep, capsys)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    start = f"{sweep.bench.folder} {sweep.bench.base} sweep {sweep.bench.recipe} --cell"
    assert (programs / "calls").read_text().splitlines() == [f"{start} 1", f"{start} 2"]


def test_cells_run_on_the_hosts_of_a_hostfile_with_their_exit_codes(sweep, programs):
    """The stand-in for ssh writes its host and the command, and fails for cell 2 as a diverged stage does."""
    (sweep.bench.folder / "hosts.json").write_text(json.dumps([{"ssh": "first"}, {"ssh": "second"}]))
    sweep.write(TWO + "  hostfile: hosts.json\n")
    write_program(
        programs / "ssh",
        f'#!/bin/bash\necho "$@" >>{sweep.bench.folder}/hosts.txt\n'
        'case "$*" in *"--cell 2") echo "the loss was not finite"; exit 4;; esac\n',
    )
    with pytest.raises(StageError, match=r"cell 2: on (first|second): the loss was not finite"):
        sweep.run()
    lines = sorted((sweep.bench.folder / "hosts.txt").read_text().splitlines())
    assert [line.split()[3] for line in lines] == ["first", "second"]
    rest = f"cd {sweep.bench.folder} && env NANOCHAT_BASE_DIR={sweep.bench.base} {sys.executable} -m nanochat.cli.run"
    ends = [line.partition(f"{rest} sweep {sweep.bench.recipe} --cell ")[2] for line in lines]
    assert sorted(ends) == ["1", "2"]


@pytest.fixture
def real_cells(programs, sweep):
    """Let `nanochat-run` use the child that pretends, and a stand-in for the program that starts it."""
    program = f"""#!{sys.executable}
import sys
import nanochat.runner.process.child as child
command = {sweep.bench.child_command!r}
import nanochat.runner.sweeps.running.cell_runner as run
run.SweepRequest.__dataclass_fields__["child_command"].default = command
run.SweepRequest.__init__.__kwdefaults__["child_command"] = command
from nanochat.cli.run import main
sys.exit(main(sys.argv[1:]))
"""
    write_program(programs / "nanochat-run", program)
    return programs


@pytest.mark.slow
def test_each_job_of_the_script_for_slurm_runs_its_cell(sweep, calls, real_cells, sbatch, capsys):
    script = write_script(sweep, capsys)
    done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert calls() == ["tokenizer", "pretrain", "pretrain"]
    assert [result.status for result in sweep.results()] == ["finished", "finished"]


@pytest.mark.slow
def test_cells_really_run_where_the_hostfile_says(sweep, calls, real_cells):
    hosts = sweep.bench.folder / "hosts.json"
    hosts.write_text(json.dumps([{"ssh": "first"}, {"ssh": "second"}]))
    sweep.write(TWO + "  hostfile: hosts.json\n")
    program = f"""#!{sys.executable} -S
import os, pathlib, sys
host, line = sys.argv[-2:]
with open({str(sweep.bench.folder / "hosts.txt")!r}, "a") as file:
    file.write(host + "\\n")
here = {str(real_cells / "nanochat-run")!r}
os.execvp("bash", ["bash", "-c", line.replace({f"{sys.executable} -m nanochat.cli.run"!r}, here)])
"""
    write_program(real_cells / "ssh", program)
    sweep.bench.control(pretrain="fail", only='"steps": 5')
    with pytest.raises(Exception, match=r"cell 2: on (first|second): ") as caught:
        sweep.run()
    assert caught.value.exit_code == 4
    assert sorted((sweep.bench.folder / "hosts.txt").read_text().split()) == ["first", "second"]
    assert sorted(calls()) == ["pretrain", "pretrain", "tokenizer"]
    assert [result.status for result in sweep.results()] == ["finished", "failed"]
