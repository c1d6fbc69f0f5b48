"""Close runs that a killed process left open in MLflow."""

from __future__ import annotations

from collections.abc import Callable

from nanochat.tracking.mlflow_store import Store, raise_outages

HOST_TAG, PID_TAG, STARTED_TAG = "host", "pid", "pid_started"


def close_stale(store: Store, *, host: str, is_alive: Callable[[int, float], bool]) -> list[str]:
    """Mark as KILLED the open runs of this host whose process has ended, and return their ids.

    `is_alive(pid, started)` returns whether the process `pid` that started at `started` is still running.

    Raises:
        TrackingOutageError: the store does not answer.
    """
    with raise_outages(store.uri):
        closed = []
        quoted = host.replace("'", "")
        pattern = f"attributes.status = 'RUNNING' and tags.{HOST_TAG} = '{quoted}'"
        for run in store.client.search_runs([store.experiment_id], pattern, max_results=1000):
            tags = run.data.tags
            if not is_alive(int(tags.get(PID_TAG, "0")), float(tags.get(STARTED_TAG, "0"))):
                store.client.set_terminated(run.info.run_id, "KILLED")
                closed.append(run.info.run_id)
        return closed
