"""`nanochat-run doctor`: what it finds, what it advises, and how it exits."""

from __future__ import annotations

import collections
import importlib.metadata
import json
import os
import platform
import subprocess
import sys

import pytest

from nanochat.cli.run import main
from nanochat.runner.doctor import base_folder, machine, software
from nanochat.runner.doctor.probe import Probe
from nanochat.storage.layout import RunFolder, stage_folder

PROBE = {
    "backend": "cpu", "device": "Device(cpu, 0)", "dtype": "float32", "blas": "OpenBLAS", "has_fast_blas": True,
    "threads": 1, "size": 512, "gflops": 100.0,
}  # fmt: skip


@pytest.fixture
def set_probe(monkeypatch):
    """Return a function that replaces what the child process with MLX finds."""

    def set_(**changes):
        content = json.dumps(PROBE | changes)
        monkeypatch.setattr(software, "_PROBE", [sys.executable, "-S", "-c", f"print({content!r})"])

    set_()
    return set_


@pytest.fixture
def quick(set_probe, monkeypatch):
    """No network, and nothing of this machine that would warn."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(software, "usable_cores", lambda: 1)


def found(findings):
    return {finding.name: finding for finding in findings}


def test_doctor_tells_the_truth_about_this_machine(quick, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    rows = {row[6:17].strip(): row[19:] for row in shown.splitlines() if row[:4].strip()}
    assert rows["python"].startswith(platform.python_version())
    assert rows["processor"].endswith(f"of {os.cpu_count()} cores usable")
    assert rows["mlflow"].split(",")[0] == importlib.metadata.version("mlflow")
    assert f"sqlite:///{tmp_path.resolve()}/mlflow.db" in shown
    assert rows["hub"].startswith("not asked")
    assert not (tmp_path / "base").exists()


def test_the_probe_measures_a_real_matrix_product():
    done = subprocess.run(software._PROBE, capture_output=True, text=True, check=True)
    probe = Probe.model_validate_json(done.stdout)
    assert probe.gflops > 0 and probe.size >= 512


def test_without_mlx_nothing_can_run(quick, monkeypatch, capsys):
    monkeypatch.setattr(software, "_PROBE", [sys.executable, "-S", "-c", "import sys; sys.exit('no libmlx.so')"])
    assert main(["doctor"]) == 3
    shown = capsys.readouterr()
    assert "FAIL  mlx" in shown.out and "no libmlx.so" in shown.out and "pip install --force-reinstall" in shown.out
    assert "no recipe can run here: 1 failure" in shown.err


def test_a_base_folder_that_cannot_be_written_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(base_folder, "find_write_problem", lambda folder: "Read-only file system")
    finding = found(base_folder.examine_base_folder(tmp_path / "base"))["base folder"]
    assert finding.level == "failure" and "Read-only file system" in finding.text
    assert "NANOCHAT_BASE_DIR" in finding.remedy


def test_a_file_system_without_locks_is_a_failure(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    finding = found(base_folder.examine_base_folder(tmp_path / "base"))["base folder"]
    assert finding.level == "failure" and "must support `flock`" in finding.text


def test_contents_that_no_run_uses_and_damaged_runs_are_named(tmp_path):
    folder = stage_folder(tmp_path, "pretrain", "a" * 12)
    folder.path.mkdir(parents=True)
    (folder.path / "weights.bin").write_bytes(bytes(3 * 2**20))
    finding = found(base_folder.examine_base_folder(tmp_path))["contents"]
    assert (finding.level, finding.text) == ("hint", "stages 3.00 MiB; 3.00 MiB are used by no run")
    run = RunFolder(tmp_path / "runs" / "x" / "20260101-000000")
    run.path.mkdir(parents=True)
    run.state.write_text("{")
    finding = found(base_folder.examine_base_folder(tmp_path))["runs"]
    assert finding.level == "warning" and "1 damaged: x/20260101-000000" in finding.text
    assert str(tmp_path / "runs") in finding.remedy


def test_a_slow_blas_an_unused_gpu_and_idle_cores_are_named(set_probe, monkeypatch, tmp_path):
    set_probe(has_fast_blas=False, blas="MLX's bundled reference BLAS")
    monkeypatch.setattr(software, "guess_device_class", lambda: "cuda")
    monkeypatch.setattr(software, "usable_cores", lambda: 8)
    monkeypatch.setattr(sys, "platform", "linux")
    rows = found(software.examine_software(tmp_path))
    assert (rows["blas"].level, rows["device"].level, rows["threads"].level) == ("warning", "warning", "hint")
    assert "scipy-openblas32" in rows["blas"].remedy and "CUDA" in rows["device"].remedy
    assert "run.threads=8" in rows["threads"].remedy


def test_two_builds_of_mlx_overwrite_each_other(set_probe, monkeypatch, tmp_path):
    versions = {"mlx": "0.32.4", "mlx-cpu": "0.32.4", "mlx-cuda-13": "0.32.4"}
    monkeypatch.setattr(software, "_version", versions.get)
    finding = found(software.examine_software(tmp_path))["mlx"]
    assert finding.level == "warning" and "overwrite" in finding.remedy


def test_missing_packages_are_a_failure_and_those_of_extras_are_not(quick, monkeypatch, tmp_path):
    required = ["pydantic<3,>=2.12", "no-such-package>=1", "a>=2; extra == 'export'", 'b; sys_platform == "beos"']
    monkeypatch.setattr("importlib.metadata.requires", lambda _: required)
    finding = found(software.examine_software(tmp_path))["packages"]
    assert (finding.level, finding.text) == ("failure", "missing: no-such-package")


def test_an_address_of_mlflow_that_cannot_work_is_named_without_its_password(quick, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    assert found(software.examine_software(tmp_path))["mlflow"].level == "warning"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@server:5000")
    finding = found(software.examine_software(tmp_path))["mlflow"]
    assert finding.level == "ok" and "secret" not in finding.text


def test_little_memory_is_a_warning(monkeypatch):
    State = collections.namedtuple("State", "total available")
    monkeypatch.setattr("psutil.virtual_memory", lambda: State(8 * 2**30, 6 * 2**30))
    monkeypatch.setattr("nanochat.runtime.container_memory_bytes", lambda: 2**29)
    finding = machine._memory()
    assert finding.level == "warning" and "this container may use 512 MiB" in finding.text


def test_the_hub_answers_or_not(fake_hub, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (finding,) = machine.examine_network()
    assert finding.level in ("ok", "warning") and os.environ["HF_ENDPOINT"] in finding.text
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (finding,) = machine.examine_network()
    assert finding.level == "warning" and "http://127.0.0.1:9 cannot be reached" in finding.text
