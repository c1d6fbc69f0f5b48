"""Measures how busy this machine is while a stage runs, with MLflow's collectors, and writes it to a local series.

The values are uploaded like any other series, so an outage of MLflow loses none. They describe the whole machine
(of the runner's host, if a stage runs on several), as MLflow itself measures them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from nanochat.storage.series import Series
from nanochat.tracking.points import read_points

if TYPE_CHECKING:
    from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor

_PREFIX = "system/"
"""MLflow shows metrics with this prefix as system metrics."""
_CANNOT_MEASURE = (ImportError, RuntimeError, AttributeError, OSError, psutil.Error)
"""What a collector raises on a machine without what it measures, such as a GPU or a network card."""


@contextmanager
def measuring_system(path: Path, every_seconds: float | None) -> Iterator[None]:
    """Append to the series at `path` while the block runs, and once more at its end. With None, do nothing.

    A thread measures, since importing MLflow takes seconds. It writes nothing after the block.
    """
    if every_seconds is None:
        yield
        return
    sampler = _Sampler(path, every_seconds)
    try:
        yield
    finally:
        sampler.stop()


class _Sampler:
    """A thread that measures in regular intervals."""

    def __init__(self, path: Path, every_seconds: float) -> None:
        self._path, self._every_seconds = path, every_seconds
        self._collectors: Sequence[BaseMetricsMonitor] = ()
        self._step = 0
        self._writing = threading.Lock()
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="system-metrics", daemon=True).start()

    def stop(self) -> None:
        """Measure once more, if MLflow is imported by now, and stop."""
        with self._writing:
            self._stop.set()
            self._measure()

    def _run(self) -> None:
        psutil.cpu_percent()  # the first call of a process has nothing to compare with
        collectors = _make_collectors()
        with self._writing:
            if self._stop.is_set():
                return
            self._step = _continue_series(self._path)
            self._collectors = collectors
        while not self._stop.wait(self._every_seconds):
            with self._writing:
                if not self._stop.is_set():
                    self._measure()

    def _measure(self) -> None:
        values: dict[str, float] = {}
        for collector in self._collectors:
            try:
                collector.collect_metrics()  # type: ignore[no-untyped-call]
                values |= collector.aggregate_metrics()  # type: ignore[no-untyped-call]
            except _CANNOT_MEASURE:
                continue
            finally:
                collector.clear_metrics()  # type: ignore[no-untyped-call]
        finite = {_PREFIX + name: float(value) for name, value in values.items() if math.isfinite(value)}
        if not finite:
            return
        try:
            Series(self._path).append(self._step, finite, time=time.time())
        except OSError:  # a full disk ends the stage with a message of its own
            return
        self._step += 1


def _make_collectors() -> list[BaseMetricsMonitor]:
    """Return those of MLflow's collectors that work on this machine."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: tuple[Callable[[], BaseMetricsMonitor], ...] = (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor)
    collectors = []
    for kind in kinds:
        try:
            collectors.append(kind())
        except _CANNOT_MEASURE:
            continue
    return collectors


def _continue_series(path: Path) -> int:
    """Return the next step of a series that an earlier attempt may have begun, and end its last line if it is cut."""
    if path.exists() and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")
    return max((point.step for point in read_points(path)), default=-1) + 1
