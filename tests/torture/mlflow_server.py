"""A real MLflow server, asked only through its REST API; a proxy that disturbs it; and what it must show of a run."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from process import Bench

from nanochat.tracking.points import read_points

RUNS = {"toy": "", "1-tokenizer": "tokenizer", "2-pretrain": "pretrain"}
"""The MLflow runs of the recipe, and the stage of each."""
FILES = {"toy": {"report.html", "recipe.yaml"}, "1-tokenizer": {"record.json"}, "2-pretrain": {"record.json"}}
_START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """An MLflow server, asked only through its REST API."""

    folder: Path
    port: int = field(default_factory=free_port)
    command: list[str] | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = self.command or [
            *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/server.db"),
            *("--artifacts-destination", str(self.folder / "files"), "--port", str(self.port), "--workers", "1"),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with Path(f"{self.folder}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{self.uri}/health", timeout=5).status == 200:
                    return
            time.sleep(0.2)
        raise SystemExit(f"the server does not start: see {self.folder}.log")

    def stop(self) -> None:
        """Kill the server with its workers."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def interrupt(self) -> int:
        """Stop the server as Ctrl-C does, so that it ends its own servers, and return the exit code."""
        assert self.process is not None, "it was started"
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(_START_SECONDS)

    def ask(self, path: str, **body: Any) -> Any:
        """Send a request of MLflow's REST API: POST if there is a body."""
        url = f"{self.uri}/api/2.0/mlflow/{path}"
        request = urllib.request.Request(url, json.dumps(body).encode() if body else None)
        request.add_header("Content-Type", "application/json")
        return json.load(urllib.request.urlopen(request, timeout=60))

    def experiment_id(self, name: str) -> str:
        query = urllib.parse.urlencode({"experiment_name": name})
        return str(self.ask(f"experiments/get-by-name?{query}")["experiment"]["experiment_id"])

    def runs(self, experiment: str, view: str = "ACTIVE_ONLY") -> list[Any]:
        ids = [self.experiment_id(experiment)]
        found = self.ask("runs/search", experiment_ids=ids, run_view_type=view, max_results=1000)
        return list(found.get("runs", []))

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Return steps and values in the order in which the server has them."""
        query = urllib.parse.urlencode({"run_id": run_id, "metric_key": metric})
        return [
            (int(point["step"]), float(point["value"]))
            for point in self.ask(f"metrics/get-history?{query}").get("metrics", [])
        ]

    def files(self, run_id: str) -> set[str]:
        return {file["path"] for file in self.ask(f"artifacts/list?run_id={run_id}").get("files", [])}

    def read_file(self, run_id: str, path: str) -> bytes:
        query = urllib.parse.urlencode({"run_id": run_id, "path": path})
        return bytes(urllib.request.urlopen(f"{self.uri}/get-artifact?{query}", timeout=60).read())


Rule = Callable[[str, bytes], str]
"""Given path and body of a request, returns what the proxy does: pass, lose, kill, or refuse with a status code."""


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the server, or does what `rule` says. `victim` is the process that it kills."""

    daemon_threads = True

    def __init__(self, server: Server) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = server
        self.rule: Rule = lambda path, body: "pass"
        self.victim = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        what = self.server.rule(self.path, body)
        if what.isdecimal():
            answer = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "too strict for this"}).encode()
            self._answer(int(what), "application/json", answer)
            return
        request = urllib.request.Request(f"{self.server.behind.uri}{self.path}", body or None, method=self.command)
        for name in ("Content-Type", "Accept"):
            if name in self.headers:
                request.add_header(name, self.headers[name])
        try:
            with urllib.request.urlopen(request, timeout=60) as answer_of_server:
                status, kind = answer_of_server.status, answer_of_server.headers.get("Content-Type", "")
                content = answer_of_server.read()
        except urllib.error.HTTPError as error:
            status, kind, content = error.code, error.headers.get("Content-Type", ""), error.read()
        except OSError:
            what = "lose"
        if what == "kill":
            os.kill(self.server.victim, signal.SIGKILL)
        if what in ("kill", "lose"):
            self.close_connection = True
            return
        self._answer(status, kind, content)

    def _answer(self, status: int, kind: str, content: bytes) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def wrong_in(
    server: Server, experiment: str, bench: Bench, *, lacking: Mapping[str, set[str]] | None = None
) -> list[str]:
    """Return what is not as it should be in an experiment that has the bench's run, once. `lacking`: files refused."""
    runs = server.runs(experiment)
    names = sorted(run["info"]["run_name"] for run in runs)
    if names != sorted(RUNS):
        return [f"runs: {', '.join(names)}"]
    ids = {run["info"]["run_name"]: run["info"]["run_id"] for run in runs}
    found = []
    for run in runs:
        name, tags = run["info"]["run_name"], {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        if run["info"]["status"] != "FINISHED":
            found.append(f"{name}: {run['info']['status']}")
        if tags.get("mlflow.parentRunId") != (ids["toy"] if RUNS[name] else None):
            found.append(f"{name}: has the parent {tags.get('mlflow.parentRunId')}")
        if not run["data"].get("params"):
            found.append(f"{name}: no parameters")
        if missing := FILES[name] - server.files(ids[name]) - (lacking or {}).get(name, set()):
            found.append(f"{name}: no {', '.join(sorted(missing))}")
        if RUNS[name]:
            found += [f"{name}: {line}" for line in _wrong_history(server, ids[name], bench.stage(RUNS[name]))]
    return found


def _wrong_history(server: Server, run_id: str, stage: Path) -> Iterator[str]:
    """Every point of the local files is there once, and in order."""
    for file in ("metrics.jsonl", "timings.jsonl"):
        expected: dict[str, list[tuple[int, float]]] = {}
        for point in read_points(stage / file):
            expected.setdefault(point.name, []).append((point.step, point.value))
        for name, points in expected.items():
            history = server.history(run_id, name)
            if [step for step, _ in history] != [step for step, _ in points]:
                yield f"{name}: steps {[step for step, _ in history]}, not {[step for step, _ in points]}"
            elif file == "metrics.jsonl" and history != points:
                yield f"{name}: the values differ"


def count_points(server: Server, experiment: str) -> int:
    return sum(
        len(server.history(run["info"]["run_id"], metric["key"]))
        for run in server.runs(experiment)
        for metric in run["data"].get("metrics", [])
    )
