"""What `mlx.launch` must be told to start the processes that train together, and what it would stumble over."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from nanochat import runtime
from nanochat.errors import PreflightError
from nanochat.plan.specs import ExecutionSpec

_PORTS = range(20_000, 30_000)
"""Below what systems hand out to outgoing connections."""
_LOOPBACK = "127.0.0.1"
_TRIES = 100


def read_hosts(path: Path) -> tuple[list[str], str]:
    """Return the host of each process, in order, and the backend that a hostfile names (empty for none).

    Raises:
        PreflightError: it cannot be read, or is not in the form of `mlx.launch`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = content["hosts"] if isinstance(content, dict) else content
        return [str(entry["ssh"]) for entry in entries], str(
            content.get("backend", "")
        ) if entries is not content else ""
    except OSError as error:
        raise PreflightError(f"`run.distributed.hostfile` {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PreflightError(
            f"`run.distributed.hostfile` {path} is not in the form of mlx.launch, a JSON list of "
            '{"ssh": HOST, "ips": [ADDRESS]}, one for each process'
        ) from error


def backend_of(execution: ExecutionSpec) -> str:
    """Return the backend that the processes talk by, `auto` decided."""
    if execution.collectives != "auto":
        return execution.collectives
    named = read_hosts(Path(execution.hostfile))[1] if execution.hostfile is not None else ""
    if named:
        return named
    return "nccl" if execution.device != "cpu" and runtime.backend_of_machine() == "cuda" else "ring"


def launch_options(execution: ExecutionSpec) -> list[str]:
    """Return the options of `mlx.launch`."""
    backend = backend_of(execution)
    options = ["--backend", backend]
    if execution.hostfile is None:
        port = str(free_ports(execution.processes))
        return [*options, "-n", str(execution.processes), "--nccl-port", port, "--starting-port", port]
    hosts, _ = read_hosts(Path(execution.hostfile))
    # With NCCL the launcher gives a process the GPU of its number modulo `-n`: the processes of a host.
    per_host = max(Counter(hosts).values())
    base = f"NANOCHAT_BASE_DIR={runtime.base_dir().absolute()}"
    return [*options, "--hostfile", execution.hostfile, "-n", str(per_host), "--env", base]


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive ports that nobody listens on here.

    Raises:
        PreflightError: none were found.
    """
    for _ in range(_TRIES):
        first = _PORTS.start + secrets.randbelow(len(_PORTS) - count)
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind((_LOOPBACK, port))
            except OSError:
                continue
            return first
    raise PreflightError(f"no {count} free ports in a row between {_PORTS.start} and {_PORTS.stop} on {_LOOPBACK}")


def find_obstacles(execution: ExecutionSpec, gpus: int | None) -> Iterator[str]:
    """Yield what keeps the processes of a recipe from starting; `gpus` is the number on this machine where known."""
    if execution.hostfile is not None:
        try:
            hosts, _ = read_hosts(Path(execution.hostfile))
        except PreflightError as error:
            yield str(error)
            return
        if len(hosts) != execution.processes:
            yield (
                f"`run.distributed.processes` is {execution.processes}, and the hostfile {execution.hostfile} "
                f"names {len(hosts)} (one entry for each process)"
            )
        remote = {host for host in hosts if host != _LOOPBACK}
        if remote and shutil.which("ssh") is None:
            yield f"`run.distributed.hostfile` names {', '.join(sorted(remote))}, and there is no `ssh` here"
    backend = backend_of(execution)
    if backend == "nccl":
        yield from _nccl_obstacles(execution, gpus)
    if backend == "mpi" and shutil.which("mpirun") is None:
        yield "`run.distributed.backend: mpi` needs `mpirun`, which is not on the PATH"


def _nccl_obstacles(execution: ExecutionSpec, gpus: int | None) -> Iterator[str]:
    if execution.device == "cpu" or runtime.backend_of_machine() != "cuda":
        yield "`run.distributed.backend: nccl` joins NVIDIA GPUs, and this run computes elsewhere; use `ring` or `auto`"
    elif execution.hostfile is None and gpus is not None and gpus < execution.processes:
        yield f"`run.distributed.processes` is {execution.processes}, and this machine has {gpus} GPUs"
