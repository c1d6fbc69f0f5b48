"""Tests of the options for `mlx.launch`, and of what is refused before it starts."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from nanochat.errors import PreflightError
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.runner.process import hosts

GPU_TWICE = [{"ssh": host, "ips": [f"10.0.0.{n}"]} for n, host in enumerate(["one", "one", "two", "two"])]


@pytest.fixture
def hostfile(tmp_path):
    def write(content):
        path = tmp_path / "hosts.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


@pytest.fixture
def on_cuda(monkeypatch):
    monkeypatch.setattr(hosts.runtime, "backend_of_machine", lambda: "cuda")


def options(**execution):
    found = hosts.launch_options(ExecutionSpec(**execution))
    return dict(zip(found[::2], found[1::2], strict=True))


def test_launch_options_on_one_machine_name_processes_and_free_ports():
    found = options(processes=3, device="cpu")
    assert (found["--backend"], found["-n"]) == ("ring", "3")
    for port in range(int(found["--starting-port"]), int(found["--starting-port"]) + 3):
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


def test_free_ports_skips_ports_in_use(monkeypatch):
    """The first of two candidates is a port that somebody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        firsts = iter([busy, busy + 2])
        monkeypatch.setattr(hosts.secrets, "randbelow", lambda _: next(firsts) - 20_000)
        assert hosts.free_ports(1) == busy + 2


def test_launch_options_with_a_hostfile_count_processes_per_host(hostfile, monkeypatch):
    """mlx.launch numbers GPUs by rank modulo `-n`. The base folder is passed on, since environments are not."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "/shared/base")
    path = hostfile(GPU_TWICE)
    found = options(processes=4, hostfile=path, device="cpu")
    assert found == {"--backend": "ring", "--hostfile": path, "-n": "2", "--env": "NANOCHAT_BASE_DIR=/shared/base"}


@pytest.mark.parametrize(
    ("given", "device", "named", "backend"),
    [
        ("auto", "auto", "", "nccl"),
        ("auto", "cpu", "", "ring"),
        ("ring", "auto", "", "ring"),
        ("auto", "auto", "jaccl", "jaccl"),
        ("mpi", "auto", "jaccl", "mpi"),
    ],
)
def test_backend_comes_from_recipe_then_hostfile_then_device(on_cuda, hostfile, given, device, named, backend):
    path = hostfile({"backend": named, "hosts": GPU_TWICE}) if named else None
    assert hosts.backend_of(ExecutionSpec(collectives=given, device=device, hostfile=path)) == backend


@pytest.mark.parametrize("content", ["no JSON", "[1, 2]", '{"hosts": [{"name": "one"}]}', "{}"])
def test_hostfile_with_another_format_is_refused(hostfile, content):
    with pytest.raises(PreflightError, match="not have the format of mlx"):
        hosts.read_hosts(Path(hostfile(content)))


def obstacles(gpus=None, **execution):
    return list(hosts.find_launch_problems(ExecutionSpec(**execution), gpus))


def test_more_processes_than_gpus_are_refused(on_cuda):
    assert obstacles(gpus=2, processes=2) == []
    assert obstacles(gpus=2, processes=4) == ["`run.distributed.processes` is 4, but this machine has 2 GPUs"]


@pytest.mark.parametrize(
    ("backend", "message"),
    [("nccl", "nccl` needs NVIDIA GPUs"), ("mpi", "`mpirun`, which is not on the PATH")],
)
def test_backend_that_this_machine_lacks_is_refused(monkeypatch, backend, message):
    monkeypatch.setattr(hosts.shutil, "which", lambda _: None)
    (found,) = obstacles(processes=2, collectives=backend, device="cpu")
    assert message in found
