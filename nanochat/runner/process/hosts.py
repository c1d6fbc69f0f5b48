"""Options for `mlx.launch`, which starts the processes that train together, and checks that it can start them."""

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
from nanochat.plan.specs.execution import ExecutionSpec
from nanochat.plurals import several

_PORTS = range(20_000, 30_000)
"""Below the ports that operating systems use for outgoing connections."""
LOOPBACK = "127.0.0.1"
_TRIES = 100


def read_hosts(path: Path, *, field: str = "run.distributed.hostfile") -> tuple[list[str], str]:
    """Return the host of each process, in order, and the backend that a hostfile names (empty if it names none).

    `field` is the recipe's field that names the file, for the message of a PreflightError.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        named = content if isinstance(content, dict) else {"hosts": content}
        return [str(entry["ssh"]) for entry in named["hosts"]], str(named.get("backend", ""))
    except OSError as error:
        raise PreflightError(f"`{field}` {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise PreflightError(
            f"`{field}` {path} does not have the format of mlx.launch: a JSON list "
            'with one entry {"ssh": HOST, "ips": [ADDRESS]} for each process'
        ) from error


def backend_of(execution: ExecutionSpec) -> str:
    """Return the communication backend of the processes, with `auto` replaced by a choice."""
    if execution.collectives != "auto":
        return execution.collectives
    if execution.hostfile is not None and (named := read_hosts(Path(execution.hostfile))[1]):
        return named
    return "nccl" if execution.device != "cpu" and runtime.backend_of_machine() == "cuda" else "ring"


def launch_options(execution: ExecutionSpec) -> list[str]:
    """Return the command-line options for `mlx.launch`."""
    backend = backend_of(execution)
    options = ["--backend", backend]
    if execution.hostfile is None:
        port = str(free_ports(execution.processes))
        return [*options, "-n", str(execution.processes), "--nccl-port", port, "--starting-port", port]
    hosts, _ = read_hosts(Path(execution.hostfile))
    # With NCCL, mlx.launch gives each process GPU number (rank modulo `-n`), so `-n` is the processes of one host.
    per_host = max(Counter(hosts).values())
    base = f"NANOCHAT_BASE_DIR={runtime.base_dir().absolute()}"
    return [*options, "--hostfile", execution.hostfile, "-n", str(per_host), "--env", base]


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive free ports on this machine. Raises PreflightError if there are none."""
    for _ in range(_TRIES):
        first = _PORTS.start + secrets.randbelow(len(_PORTS) - count)
        with ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind((LOOPBACK, port))
            except OSError:
                continue
            return first
    raise PreflightError(f"no {count} consecutive free ports between {_PORTS.start} and {_PORTS.stop} on {LOOPBACK}")


def find_launch_problems(execution: ExecutionSpec, gpus: int | None) -> Iterator[str]:
    """Yield the reasons why the processes of a recipe cannot start. `gpus` is the number on this machine, if known."""
    if execution.hostfile is not None:
        try:
            hosts, _ = read_hosts(Path(execution.hostfile))
        except PreflightError as error:
            yield str(error)
            return
        if len(hosts) != execution.processes:
            yield (
                f"`run.distributed.processes` is {execution.processes}, but the hostfile {execution.hostfile} "
                f"has {several(len(hosts), 'entry', 'entries')}; it needs one for each process"
            )
        remote = {host for host in hosts if host != LOOPBACK}
        if remote and shutil.which("ssh") is None:
            yield f"`run.distributed.hostfile` names {', '.join(sorted(remote))}, but `ssh` is not on the PATH"
    backend, has_gpus = backend_of(execution), execution.device != "cpu" and runtime.backend_of_machine() == "cuda"
    if backend == "nccl" and not has_gpus:
        yield "`run.distributed.backend: nccl` needs NVIDIA GPUs, but this run does not use any; set `ring` or `auto`"
    elif backend == "nccl" and execution.hostfile is None and gpus is not None and gpus < execution.processes:
        yield f"`run.distributed.processes` is {execution.processes}, but this machine has {several(gpus, 'GPU')}"
    if backend == "mpi" and shutil.which("mpirun") is None:
        yield "`run.distributed.backend: mpi` needs `mpirun`, which is not on the PATH"
