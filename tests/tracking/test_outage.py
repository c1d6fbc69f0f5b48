"""Tests with a real MLflow server that is killed and restarted while a run uploads to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from nanochat.storage.layout import MODEL_FILES
from nanochat.tracking import uploader as uploader_module
from nanochat.tracking.link import read_link
from nanochat.tracking.mlflow_store import open_store
from nanochat.tracking.models.logged_models import ModelWriter
from nanochat.tracking.uploader import Uploader

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")]


class Server:
    """`mlflow server` on loopback over a SQLite file."""

    def __init__(self, folder) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process = None

    def start(self) -> None:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self._folder}/s.db"]
        command += ["--artifacts-destination", str(self._folder / "art"), "--port", str(self.port), "--workers", "1"]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self._folder / "server.log").read_text())

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "waited for five minutes"
        time.sleep(0.1)


def test_server_killed_twice_ends_with_every_metric_once_and_in_order(tmp_path, fake_run, monkeypatch):
    """Metrics are written all the time, and one of the outages is in the middle of an upload."""
    monkeypatch.setattr(uploader_module, "_RETRY_SECONDS", 0.3)
    monkeypatch.setattr(uploader_module, "UPLOAD_EVERY_SECONDS", 0.1)
    server = Server(tmp_path)
    server.start()
    status = ["RUNNING"]
    uploader = Uploader(
        server.uri,
        "nanochat",
        view=lambda: fake_run.view(status[0], status[0]),
        pending=list,
        machine="here",
        is_alive=lambda pid, started: True,
    )
    try:
        uploader.start()
        step = 0
        for _outage in range(2):
            for _ in range(20):
                fake_run.append(fake_run.metrics, [step])
                step += 1
                time.sleep(0.02)
            wait_for(lambda: read_link(fake_run.folder / "stage.json") is not None)
            server.kill()
            fake_run.append(fake_run.metrics, range(step, step + 50))
            step += 50
            wait_for(lambda: uploader.problem is not None)
            assert server.uri in uploader.problem
            server.start()
        status[0] = "FINISHED"
        wait_for(lambda: uploader.problem is None)
        uploader.stop()
        assert uploader.join(300) and uploader.problem is None, uploader.problem
        store = open_store(server.uri, "nanochat")
        run_id = read_link(fake_run.folder / "stage.json").run_id
        history = store.client.get_metric_history(run_id, "train/loss")
        assert [metric.step for metric in history] == list(range(step))
        assert store.client.get_run(run_id).info.status == "FINISHED"
        assert len(store.client.search_runs([store.experiment_id])) == 2
    finally:
        server.kill()


def test_server_killed_while_it_gets_a_model_ends_with_the_model_once(tmp_path, shelf, monkeypatch):
    """It is killed when the model has been created there and its files have not been uploaded."""
    monkeypatch.setattr(uploader_module, "_RETRY_SECONDS", 0.3)
    server = Server(tmp_path)
    server.start()
    send_files, killed = ModelWriter._send_files, []

    def kill_first(*arguments):
        if not killed:
            killed.append(True)
            server.kill()
        send_files(*arguments)

    monkeypatch.setattr(ModelWriter, "_send_files", kill_first)
    uploader = Uploader(
        server.uri, "nanochat", view=shelf.view, pending=list, machine="here", is_alive=lambda pid, started: True
    )
    try:
        uploader.start()
        wait_for(lambda: uploader.problem is not None)
        assert server.uri in uploader.problem
        server.start()
        wait_for(lambda: uploader.problem is None)
        uploader.stop()
        assert uploader.join(300) and uploader.problem is None, uploader.problem
        store = open_store(server.uri, "nanochat")
        (model,) = store.client.search_logged_models([store.experiment_id])
        assert (str(model.status), len(model.metrics)) == ("READY", 2)
        assert {file.path for file in store.client.list_logged_model_artifacts(model.model_id, "model")} == {
            f"model/{name}" for name in MODEL_FILES
        }
        assert store.client.get_registered_model("speller").aliases == {"best": "1"}
    finally:
        server.kill()
