"""Tests that `nanochat-run ui` shows the results, or prints a command that does: never one that leads back."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import sqlite3
import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path

import psutil
import pytest

from nanochat.cli.run import main
from nanochat.runner.store.record import Provenance
from nanochat.runner.store.run_state import RunState, RunTracking
from nanochat.runner.upload import web_page
from nanochat.runner.upload.web_page import PageServer
from nanochat.storage.layout import create_run_folder
from nanochat.tracking.link import Link

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
MADE = Provenance(git_commit=None, git_dirty=False, packages={}, python="3", platform="x", host="here")


class Ui:
    """Calls the command without starting a server."""

    def __init__(self, monkeypatch, capsys) -> None:
        self._patch, self._capsys = monkeypatch, capsys
        monkeypatch.setattr("nanochat.cli.verbs.machine_commands._serve", self._serve)
        self.environment: dict[str, str] = {}
        self.command: list[str] = []

    def _serve(self, server):
        self.command, self.folder, self.environment = server.command, server.folder, server.environment
        raise SystemExit(99)

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Return the exit code, 99 for a server, and everything printed."""
        self._capsys.readouterr()
        try:
            code = main(["ui", *arguments])
        except SystemExit as end:
            code = end.code
        shown = self._capsys.readouterr()
        return code, shown.out + shown.err

    def follow(self, text: str, *, pattern: str = r"nanochat-run (ui[^`\n(]*)") -> int:
        """Run the first command in a text, and return its exit code."""
        command = re.search(pattern, text)
        assert command is not None, text
        return self(*shlex.split(command[1])[1:])[0]


@pytest.fixture
def ui(tmp_path, monkeypatch, capsys):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return Ui(monkeypatch, capsys)


@pytest.fixture
def port():
    """A port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def add_run(base: Path, name: str, uri: str | None) -> None:
    folder = create_run_folder(base, name, datetime(2025, 1, 1))
    RunState(
        name=name, recipe="r.yaml", seed=1, plan_digest="d", created=0, updated=0, status="finished", host="", pid=1,
        process_started=0, provenance=MADE, command=f"nanochat-run {name}.yaml",
        tracking=RunTracking(kind="none" if uri is None else "mlflow", uri=uri),
    ).write(folder.state)  # fmt: skip


@pytest.mark.parametrize("port", ["99999", "0", "-1", "x", "1.5"])
def test_port_that_does_not_exist_is_wrong_usage(ui, port):
    code, text = ui("--port", port)
    assert (code, "from 1 to 65535" in text or "expected one argument" in text) == (2, True)


def test_address_that_can_never_work_is_refused_with_the_right_one(ui, monkeypatch):
    """A wrong option is wrong usage; the environment is not."""
    code, text = ui("--uri", "./mlruns")
    assert code == 2 and "--uri ./mlruns: MLflow keeps runs on a server or in a database" in text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "localhost:5000")
    code, text = ui()
    assert code == 3 and "MLFLOW_TRACKING_URI is `localhost:5000`: MLflow keeps runs on a server" in text


def test_taken_port_is_replaced_by_a_free_one_or_one_is_named(ui, port, monkeypatch, fresh_database):
    """Only a port that the user asked for is an error."""
    shutil.copy(fresh_database, "mlflow.db")
    code, text = ui("--port", str(port))
    assert code == 3 and f"port {port} is in use" in text and "http://" not in text
    assert ui.follow(text) == 99
    monkeypatch.setattr(web_page, "MLFLOW_PORT", port)
    code, text = ui()
    chosen = int(re.search(r"http://127.0.0.1:(\d+)", text)[1])
    assert code == 99 and chosen > port and f"port {port} is in use: replace it by {chosen}" in text
    assert ui.command[ui.command.index("--port") + 1] == str(chosen)


@pytest.mark.parametrize("folder", ["plain", "q?a=1 100%20#ü"])
def test_database_of_a_folder_is_served_with_its_files(ui, tmp_path, fresh_database, folder):
    """The address and the place for files are relative to the folder of the database."""
    place = tmp_path / folder
    place.mkdir()
    shutil.copy(fresh_database, place / "mlflow.db")
    code, _ = ui("--uri", f"sqlite:///{place}/mlflow.db")
    assert (code, ui.folder) == (99, place)
    assert ui.environment["MLFLOW_BACKEND_STORE_URI"] == "sqlite:///mlflow.db"
    assert ui.command[-2:] == ["--artifacts-destination", "./mlartifacts"]


def test_files_of_a_moved_project_are_found(ui, fresh_database, tmp_path):
    """No run has written to the database since it was moved."""
    shutil.copy(fresh_database, "mlflow.db")
    Path("mlartifacts/nanochat").mkdir(parents=True)
    with closing(sqlite3.connect("mlflow.db")) as database, database:
        database.execute(
            "insert into experiments (name, artifact_location, lifecycle_stage) values ('nanochat', ?, 'active')",
            (f"file://{tmp_path}/before/mlartifacts/nanochat",),
        )
    assert ui()[0] == 99
    with closing(sqlite3.connect("mlflow.db")) as database:
        (place,) = database.execute("select artifact_location from experiments where name = 'nanochat'").fetchone()
    assert place == (tmp_path / "here" / "mlartifacts" / "nanochat").as_uri()


def test_folder_without_a_database_names_those_that_runs_were_logged_to(ui, tmp_path, fresh_database):
    """The commands work from this folder."""
    shutil.copy(fresh_database, tmp_path / "a b.db")
    base, there = tmp_path / "base", f"sqlite:///{tmp_path}/a b.db"
    for name, uri in (("one", there), ("two", there), ("gone", f"sqlite:///{tmp_path}/gone.db"), ("off", None)):
        add_run(base, name, uri)
    code, text = ui()
    assert code == 3 and "(2 runs)" in text and "gone.db" not in text
    assert ui.follow(text) == 99


def test_folder_without_a_database_says_what_to_do_if_there_is_none_anywhere(ui, tmp_path):
    """Which command helps depends on why there is none."""
    assert "run a recipe first" in ui()[1]
    add_run(tmp_path / "base", "off", None)
    assert "no run of this machine is logged to MLflow" in ui()[1]
    add_run(tmp_path / "base", "deleted", f"sqlite:///{tmp_path}/here/mlflow.db")
    assert "repeat `nanochat-run deleted.yaml`" in ui()[1]
    Path("mlflow.db").touch()
    assert "repeat `nanochat-run deleted.yaml`" in ui()[1]


def test_file_that_is_no_database_is_refused(ui):
    Path("mlflow.db").write_text("something else, longer than a header")
    code, text = ui()
    assert code == 3 and "file is not a database" in text


def test_server_that_does_not_answer_is_refused_with_a_way_to_start_it(ui, port, fresh_database, monkeypatch):
    """The command serves the database of this folder at the address that runs use."""
    code, text = ui("--uri", f"http://localhost:{port}")
    assert code == 0 and f"open http://localhost:{port}/?workflowType" in text
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        free = closed.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free}")
    code, text = ui()
    assert code == 3 and f"`mlflow server --port {free}`" in text
    shutil.copy(fresh_database, "mlflow.db")
    assert ui.follow(ui()[1]) == 99
    assert ui.command[ui.command.index("--port") + 1] == str(free)


def test_database_server_is_served_with_its_password_out_of_sight(ui, monkeypatch):
    """Other users of the machine see the arguments of a program, but not its environment."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter2@host/runs")
    code, text = ui()
    assert code == 99 and "hunter2" not in text + " ".join(ui.command)
    assert ui.environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me:hunter2@host/runs"


def test_results_on_databricks_are_named(ui):
    """No server here can show them."""
    code, text = ui("--uri", "databricks")
    assert code == 3 and "your Databricks workspace" in text
    assert "your Databricks workspace" in web_page.where_to_look(Link(uri="databricks", experiment="e", run_id="r"))


@pytest.mark.parametrize("name", ["mlflow.db", "o'ther runs.db"])
def test_line_at_the_end_of_a_run_names_a_command_that_shows_it(ui, fresh_database, name):
    shutil.copy(fresh_database, name)
    line = web_page.where_to_look(Link(uri=f"sqlite:///{Path.cwd()}/{name}", experiment_id="1", run_id="r"))
    assert ("--uri" in line) == (name != "mlflow.db")
    assert ui.follow(line, pattern="`nanochat-run (.*)`") == 99
    assert ui.folder / name == Path.cwd() / name


def serve(monkeypatch, folder: Path, code: str) -> int:
    """Return the exit code of the command with a program in place of the server."""
    server = PageServer([sys.executable, "-S", "-c", code], {}, folder, "open the page")
    monkeypatch.setattr("nanochat.cli.verbs.machine_commands.page_server", lambda *_: server)
    monkeypatch.setattr("nanochat.cli.verbs.machine_commands.runtime.set_environment", monkeypatch.setenv)
    return main(["ui"])


def test_a_signal_ends_the_server_with_all_its_processes_and_without_their_tracebacks(monkeypatch, capfd, tmp_path):
    """Its processes end although the one that started them has ended, and what it prints then is not shown."""
    code = (
        "import os, signal, subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "open('worker', 'w').write(str(worker.pid))\n"
        "os.kill(os.getppid(), signal.SIGINT)\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    assert serve(monkeypatch, tmp_path, code) == 75
    shown = capfd.readouterr()
    assert shown.err == "stopped\n" and "Traceback" not in shown.out
    worker = int((tmp_path / "worker").read_text())
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE


def test_a_server_that_ends_by_itself_is_a_failure(monkeypatch, capfd, tmp_path):
    assert serve(monkeypatch, tmp_path, "print('port \\x1b taken'); raise SystemExit(7)") == 4
    shown = capfd.readouterr()
    assert shown.out == "open the page\nport \\x1b taken\n"
    assert "exit status 7" in shown.err
