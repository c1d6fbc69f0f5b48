"""How a stage's process ends: exit codes, error messages, signals, and the death of its parent."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.errors import OUT_OF_MEMORY, InterruptedRun, PreflightError, StageError
from nanochat.plan.specs.job import Job
from nanochat.stages.process.context import StageResult
from nanochat.stages.process.exit import run_guarded
from nanochat.stages.process.run_job import main


def job_in(tmp_path, tokenizer_spec):
    return Job(spec=tokenizer_spec, execution={}, stage_dir=str(tmp_path), upstream={})


ERRORS = {
    "user's error": (PreflightError("no such source"), 3, "no such source\n"),
    "failed": (StageError("diverged"), 4, "diverged\n"),
    "stopped": (InterruptedRun("saved at step 3"), 75, "saved at step 3\n"),
    "memory": (MemoryError(), OUT_OF_MEMORY, "ran out of memory (MemoryError)"),
    "memory of MLX": (RuntimeError("[malloc] Unable to allocate 9 bytes."), OUT_OF_MEMORY, "allocate 9 bytes"),
    "memory of Metal": (RuntimeError("[METAL] failed: Insufficient Memory"), OUT_OF_MEMORY, "Insufficient Memory"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), 4, "Free some space"),
    "lost disk": (
        OSError(errno.EIO, "Input/output error", "a.txt"),
        4,
        "tokenizer: a.txt: Input/output error; its disk",
    ),
    "bug": (RuntimeError("shapes (3) and (4)"), 1, "Traceback (most recent call last)"),
}


@pytest.mark.parametrize(("error", "code", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_stage_error_sets_the_exit_code_and_error_file(tmp_path, tokenizer_spec, error, code, message):
    def run():
        raise error

    assert run_guarded(job_in(tmp_path, tokenizer_spec), run) == code
    assert message in (tmp_path / "error.txt").read_text()


def test_stage_process_without_a_job_prints_its_usage(capsys):
    assert main([]) == 2
    assert "JOB.json" in capsys.readouterr().err


def test_stage_process_first_logs_the_files_that_it_reads(tmp_path, tokenizer_spec, monkeypatch, capsys):
    """A file without text is news, because the plan did not open it. The files are also kept for the report."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    (tmp_path / "documents/blank.txt").write_text("\n \n")
    monkeypatch.setattr("nanochat.stages.process.run_job.run_stage", lambda job, context: StageResult({}))
    folder = tmp_path / "stage"
    folder.mkdir()
    job = job_in(folder, tokenizer_spec)
    (folder / "job.json").write_text(job.model_dump_json())
    monkeypatch.setattr("nanochat.stages.process.stop_flag.StopFlag.install", lambda self: None)
    assert main([str(folder / "job.json")]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("note: documents: 40 of 41 files, 40 documents, ")
    assert line.endswith("; left out: blank.txt (empty)")
    assert json.loads((folder / "sources.json").read_text()) == [line.removeprefix("note: ")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_the_log_does_not_end_the_stage(tmp_path, tokenizer_spec, monkeypatch):
    """Nor does an encoding that lacks the characters of a line."""

    def run_stage(job, context):
        context.log_line("résumé")
        return StageResult({"answer": 1.0})

    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr("nanochat.stages.process.run_job.run_stage", run_stage)
    monkeypatch.setattr("nanochat.stages.process.stop_flag.StopFlag.install", lambda self: None)
    path = tmp_path / "job.json"
    path.write_text(job_in(tmp_path, tokenizer_spec).model_dump_json())
    with Path("/dev/full").open("w", encoding="ascii") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", full)
        assert main([str(path)]) == 0
    assert json.loads((tmp_path / "out/result.json").read_text()) == {"metrics": {"answer": 1.0}}


WAIT_FOR_SIGNAL = """
import sys, time
from nanochat.stages.process.stop_flag import StopFlag
flag = StopFlag(is_final={is_final})
flag.install()
print("ready", flush=True)
began = time.monotonic()
while time.monotonic() - began < 30:
    if flag() and not {ignores_flag}:
        print("saved", flush=True)
        sys.exit(75)
    time.sleep(0.01)
"""


def start(*, is_final=False, ignores_flag=False):
    code = WAIT_FOR_SIGNAL.format(is_final=is_final, ignores_flag=ignores_flag)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    "signals", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT, signal.SIGTERM]]
)
def test_first_signal_sets_the_stop_flag(signals):
    """Two signals at once count as one: Ctrl-C may arrive from the terminal and from the parent."""
    process = start()
    for number in signals:
        process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert (out, process.returncode) == ("saved\n", 75)


def test_second_signal_ends_the_process_at_once():
    process = start(ignores_flag=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert (out, process.returncode) == ("", 75)


def test_first_signal_ends_a_stage_that_has_nothing_to_save():
    process = start(is_final=True, ignores_flag=True)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 75


ORPHAN = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {code!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
"""


def test_stage_process_ends_when_its_parent_dies():
    """Otherwise it would keep writing into a folder that a new run may use."""
    parent = [sys.executable, "-c", ORPHAN.format(code=WAIT_FOR_SIGNAL.format(is_final=False, ignores_flag=True))]
    pid = int(subprocess.run(parent, capture_output=True, text=True, check=True, timeout=30).stdout)
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, "the orphan is still running"
        time.sleep(0.05)


def is_running(pid):
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(listed) and not listed.startswith("Z")


def test_numpy_is_imported_after_the_threads_of_its_blas_are_set():
    """NumPy's BLAS reads its number of threads once, when it is loaded. Training on a CPU computes with it."""
    code = "import sys, nanochat.stages.process.run_job; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
