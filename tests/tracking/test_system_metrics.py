"""Tests that the machine is measured with MLflow's collectors, and that the values are uploaded with their times."""

from __future__ import annotations

import json
import time

import pytest

from nanochat.tracking.link import read_link
from nanochat.tracking.mlflow_store import open_store
from nanochat.tracking.sync import Sender
from nanochat.tracking.system_metrics import measuring_system

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_system_metrics_continue_the_series_of_a_killed_attempt(tmp_path):
    """Its last line is cut. Shares are percentages, and nothing is written after the stage has ended."""
    path = tmp_path / "system.jsonl"
    path.write_text('{"step": 0, "metrics": {"system/cpu_utilization_percentage": 1.0}}\n{"step": 1, "met')
    before = time.time()
    with measuring_system(path, 0.01):
        while path.read_text().count("\n") < 3:
            time.sleep(0.01)
    written = path.read_text()
    _, cut, *new = written.splitlines()
    assert cut == '{"step": 1, "met'
    entries = [json.loads(line) for line in new]
    assert [entry["step"] for entry in entries] == list(range(1, 1 + len(entries)))
    assert all(before <= entry["time"] <= time.time() for entry in entries)
    shares = ("cpu_utilization", "system_memory_usage", "disk_usage")
    for name in shares:
        assert all(0 <= entry["metrics"][f"system/{name}_percentage"] <= 100 for entry in entries)
    time.sleep(0.05)
    assert path.read_text() == written


def test_system_metrics_are_off_without_an_interval(tmp_path):
    with measuring_system(tmp_path / "system.jsonl", None):
        pass
    assert not list(tmp_path.iterdir())


def test_points_with_a_time_keep_it_in_mlflow(uri, fake_run):
    """Although they are uploaded later, as after an outage. Other points get the time of the upload."""
    store = open_store(uri, "nanochat")
    fake_run.timings.write_text('{"step": 3, "time": 1700000000.25, "metrics": {"system/x": 1.5}}\n')
    Sender(store).send(fake_run.view())
    (point,) = store.client.get_metric_history(read_link(fake_run.folder / "stage.json").run_id, "system/x")
    assert (point.step, point.value, point.timestamp) == (3, 1.5, 1_700_000_000_250)
