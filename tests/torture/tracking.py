"""Disturb the upload to a real MLflow server: its REST API must show every run once, complete and in order.

`python tests/torture/tracking.py` (5 minutes). Between the runs and the server stands a proxy that loses answers, kills
the run when the server has done what it was asked, and refuses requests as a stricter server would. Every case has an
experiment of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlflow_server import RUNS, Proxy, Server, count_points, free_port, wrong_in
from process import Bench, conclude

SMALL = (
    "base_eval=null", "sft=null", "chat_eval=null", "pretrain.horizon.steps=24", "run.monitor.prompts=[]",
    "run.monitor.validate_every_steps=8",
)  # fmt: skip
LOCKED, STOPPED = 6, 75
_ATTEMPTS = 12
_WAIT_SECONDS = 120
_INCOMPLETE = "MLflow: not everything could be uploaded"


class Case:
    """One way to disturb the upload."""

    def __init__(self, name: str, folder: Path, server: Server, proxy: Proxy) -> None:
        self.name, self.folder, self.server, self.proxy = name, folder, server, proxy
        self.wrong: list[str] = []
        proxy.rule = lambda path, body: "pass"

    def bench(self, *overrides: str, uri: str | None = None, experiment: str = "", folder: str = "") -> Bench:
        """Return a bench that logs through the proxy, or to `uri`."""
        environment = {
            "MLFLOW_TRACKING_URI": self.proxy.uri if uri is None else uri,
            "MLFLOW_EXPERIMENT_NAME": experiment or self.name,
        }
        return Bench(self.folder / (folder or self.name), overrides=(*SMALL, *overrides), environment=environment)

    def run(self, bench: Bench, *said: str, code: int = 0) -> str:
        """Run the command to its end; note another exit code, and what it should have printed; return its output."""
        before = len(bench.said()) if bench.output.exists() else 0
        for _ in range(_ATTEMPTS):
            if (ended := bench.run()) != LOCKED:  # the child of a killed run may still be at work
                break
            time.sleep(1)
        output = bench.said()[before:]
        if ended != code:
            self.wrong.append(f"exit code {ended}: {output[-500:]}")
        self.wrong += [f"the command did not print `{text}`" for text in said if text not in output]
        return output

    def run_until_uploaded(self, bench: Bench) -> None:
        """Repeat the command until nothing is left to upload."""
        for _ in range(_ATTEMPTS):
            if _INCOMPLETE not in self.run(bench):
                return
        self.wrong.append(f"not uploaded after {_ATTEMPTS} commands")

    def check(self, bench: Bench, **rest: object) -> None:
        """Note what the experiment lacks or has too much of."""
        self.wrong += wrong_in(self.server, bench.environment["MLFLOW_EXPERIMENT_NAME"], bench, **rest)  # type: ignore[arg-type]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                self.wrong.append("waited in vain")
                return
            time.sleep(0.1)

    def run_id(self, name: str) -> str:
        return next((r["info"]["run_id"] for r in self.server.runs(self.name) if r["info"]["run_name"] == name), "")


def undisturbed(case: Case) -> None:
    """The run itself, and the same command again."""
    bench = case.bench()
    case.run(bench)
    case.run(bench, "nothing to do", "MLflow: ")
    case.check(bench)


def server_killed(case: Case) -> None:
    """The server dies while a stage trains, and is back before the command is repeated."""
    bench = case.bench()
    attempt = bench.start()
    attempt.wait_for_stage("pretrain")
    case.server.stop()
    code = attempt.end()
    if code != 0:
        case.wrong.append(f"exit code {code}")
    case.server.start()
    case.run_until_uploaded(bench)
    case.check(bench)


def server_down(case: Case) -> None:
    """The whole run happens without a server. The next command sends it, though it has nothing to do."""
    bench = case.bench()
    case.proxy.rule = lambda path, body: "lose"
    case.run(bench, _INCOMPLETE, "the next run uploads it")
    case.proxy.rule = lambda path, body: "pass"
    case.run(bench, "nothing to do")
    case.check(bench)


def answers_lost(case: Case) -> None:
    """One of seven answers is lost after the server did what it was asked."""
    bench, chance = case.bench(), random.Random(1)
    case.proxy.rule = lambda path, body: "lose" if chance.random() < 1 / 7 else "pass"
    case.run_until_uploaded(bench)
    case.proxy.rule = lambda path, body: "pass"
    case.run_until_uploaded(bench)
    case.check(bench)


def killed_at_creation(case: Case, number: int) -> None:
    """kill -9 between the creation of a run on the server and our record of it."""
    bench, created = case.bench(), itertools.count(1)

    def rule(path: str, body: bytes) -> str:
        return "kill" if path.endswith("runs/create") and next(created) == number else "pass"

    case.proxy.rule = rule
    attempt = bench.start()
    case.proxy.victim = attempt.process.pid
    if attempt.end() != -signal.SIGKILL:
        case.wrong.append("the run was not killed")
    if len(case.server.runs(case.name)) != number:
        case.wrong.append("the server did not create the run")
    case.run(bench)
    case.check(bench)


def deleted(case: Case) -> None:
    """A stage, the run, and the experiment are deleted in MLflow. The same command brings each back."""
    bench = case.bench()
    case.run(bench)
    for name in ("2-pretrain", "toy"):
        case.server.ask("runs/delete", run_id=case.run_id(name))
        case.run(bench, "nothing to do")
        case.check(bench)
    gone = len(case.server.runs(case.name, "ALL"))
    case.server.ask("experiments/delete", experiment_id=case.server.experiment_id(case.name))
    case.run(bench, "nothing to do", f"MLflow restored the {gone} deleted runs in it")
    restored = len(case.server.runs(case.name))
    if restored != gone or gone != len(RUNS) + 2:
        case.wrong.append(f"{restored} runs restored of {gone}")


def deleted_while_running(case: Case) -> None:
    """The run and the stage at work are deleted. The same command creates them again."""
    bench = case.bench("pretrain.horizon.steps=200")
    attempt = bench.start()
    case.wait_for(lambda: attempt.child() is not None and attempt.process.poll() is None)
    attempt.wait_for_stage("pretrain")

    def is_shown() -> bool:
        try:
            return bool(case.run_id("2-pretrain"))
        except OSError:  # the experiment does not exist yet
            return False

    case.wait_for(is_shown)
    for name in ("toy", "2-pretrain"):
        case.server.ask("runs/delete", run_id=case.run_id(name))
    if attempt.end() != 0:
        case.wrong.append("the run failed")
    case.check(bench)


def refused(case: Case) -> None:
    """A server that accepts neither a tag nor a large file gets the rest, and both are named."""

    def rule(path: str, body: bytes) -> str:
        if b'"color"' in body and path.endswith("log-batch"):
            return "400"
        return "413" if path.endswith("report.html") else "pass"

    case.proxy.rule = rule
    bench = case.bench("tracking.tags={color: red, shape: round}")
    case.run(bench, "refused toy: tag `color`: ", "refused toy: file `report.html`: ")
    case.check(bench, lacking={"toy": {"report.html"}})
    tags = case.server.runs(case.name)
    shown = {tag["key"] for run in tags for tag in run["data"]["tags"]}
    if "color" in shown or "shape" not in shown:
        case.wrong.append("the tags are not what the server accepts")


def earlier_run_refused(case: Case) -> None:
    """An earlier run whose tags no server accepts blocks neither the current run nor is it lost itself."""
    bench = case.bench()
    case.proxy.rule = lambda path, body: "lose"
    case.run(bench, _INCOMPLETE)
    (state,) = (bench.base / "runs").glob("*/*/run.json")
    content = json.loads(state.read_text())
    content["tracking"]["tags"] = {"mlflow.runName": "mine", "k" * 251: "long", "a,b//c": "odd"}
    state.write_text(json.dumps(content))
    case.proxy.rule = lambda path, body: "pass"
    other = Bench(bench.folder, overrides=(*bench.overrides, "name=other", "seed=9"), environment=bench.environment)
    case.run(other, "refused toy: tag `mlflow.runName`")
    names = sorted(run["info"]["run_name"] for run in case.server.runs(case.name))
    if names != sorted(["toy", "other", "1-tokenizer", "2-pretrain", "2-pretrain"]):
        case.wrong.append(f"runs: {', '.join(names)}")


def other_experiment_and_store(case: Case) -> None:
    """The same command with another experiment, then with another server, sends everything there, once."""
    bench = case.bench()
    case.run(bench)
    second = case.bench(experiment=f"{case.name} 2")
    case.run(second, "nothing to do")
    case.run(bench, "nothing to do")
    case.check(bench)
    case.check(second)
    elsewhere = Server(case.folder / "second server")
    elsewhere.start()
    try:
        third = case.bench(uri=elsewhere.uri)
        case.run(third, "nothing to do")
        case.wrong += wrong_in(elsewhere, case.name, third)
    finally:
        elsewhere.stop()


def moved_project(case: Case) -> None:
    """A project with its database is renamed. Old and new files are found by `ui`, and none is in the old place."""
    bench = case.bench(uri="")
    case.run(bench)
    odd = "q?a=1 100%20#ü"
    there = case.bench(uri="", folder=odd)
    bench.folder.rename(there.folder)
    case.run(there, "nothing to do")
    port = free_port()
    ui = Server(there.folder, port, [sys.executable, "-m", "nanochat.cli.run", "ui", "--port", str(port)])
    ui.start()
    try:
        case.wrong += wrong_in(ui, case.name, there)
        print(f"{'':24} {len(ui.runs(case.name))} runs, {count_points(ui, case.name):5} points in the moved database")
        case.run(case.bench("name=toy", "seed=9", uri="", experiment="new", folder=odd))
        if (names := sorted(run["info"]["run_name"] for run in ui.runs("new"))) != ["2-pretrain", "toy"]:
            case.wrong.append(f"new: {', '.join(names)}")
        pages = {path.read_bytes() for path in there.base.glob("runs/*/*/report.html")}
        for experiment in (case.name, "new"):
            (run,) = [run for run in ui.runs(experiment) if run["info"]["run_name"] == "toy"]
            if ui.read_file(run["info"]["run_id"], "report.html") not in pages:
                case.wrong.append(f"{experiment}: report.html is another")
    finally:
        if (code := ui.interrupt()) != STOPPED:
            case.wrong.append(f"ui ended with {code}")
    with contextlib.suppress(OSError):
        ui.runs("new")
        case.wrong.append("the server outlives the command")
    if bench.folder.exists():
        case.wrong.append("something was written to the old place")


def wrong_addresses(case: Case) -> None:
    """Addresses that can never work end the command before the first stage, with the address to write."""
    remedies = {
        "./mlruns": "sqlite:///mlruns/mlflow.db",
        "mlruns": "sqlite:///mlruns/mlflow.db",
        "localhost:5000": "http://localhost:5000",
        "http:/x": "http://x",
        "htp://localhost:5000": "http://localhost:5000",
        "s3://bucket/runs": "sqlite:///mlflow.db",
    }
    for uri, instead in remedies.items():
        case.run(case.bench(uri=uri), f"set MLFLOW_TRACKING_URI={instead}", code=3)
    bench = case.bench("tracking.uri=./mlruns", uri="")
    case.run(bench, "write `uri: sqlite:///mlruns/mlflow.db`", code=2)
    if list(bench.base.glob("stages/*/*")):
        case.wrong.append("a stage ran")


CASES: dict[str, Callable[[Case], None]] = {
    "undisturbed": undisturbed,
    "server killed": server_killed,
    "server down": server_down,
    "answers lost": answers_lost,
    **{f"killed at creation {n}": lambda case, n=n: killed_at_creation(case, n) for n in range(1, len(RUNS) + 1)},  # type: ignore[misc]
    "deleted": deleted,
    "deleted while running": deleted_while_running,
    "refused": refused,
    "earlier run refused": earlier_run_refused,
    "other experiment, store": other_experiment_and_store,
    "moved project": moved_project,
    "wrong addresses": wrong_addresses,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES), help="the cases to run")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="nanochat-torture-mlflow-"))
    server = Server(folder / "server")
    server.start()
    proxy, wrong = Proxy(server), []
    try:
        for name in options.only:
            case = Case(name, folder, server, proxy)
            CASES[name](case)
            shown = ""
            try:
                runs = server.runs(name)
                shown = f"{len(runs)} runs, {count_points(server, name):5} points"
            except OSError:
                shown = "(not on this server)"
            print(f"{name:24} {shown:24} {'WRONG' if case.wrong else 'ok'}", flush=True)
            wrong += [f"{name}: {line}" for line in case.wrong]
    finally:
        server.stop()
        proxy.shutdown()
    return conclude(wrong, folder, f"{len(options.only)} cases: every run is in MLflow once, complete and in order")


if __name__ == "__main__":
    sys.exit(main())
