"""Close runs that a killed process left open in the store."""

from __future__ import annotations

from collections.abc import Callable

from nanochat.tracking.store import Store, raise_outages

HOST_TAG, PID_TAG, STARTED_TAG = "host", "pid", "pid_started"


def close_stale(store: Store, *, host: str, is_alive: Callable[[int, float], bool]) -> list[str]:
    """End, as KILLED, the runs of this host that are open though their process is gone; return their ids.

    `is_alive(pid, started)` tells whether the process `pid` that began at `started` still runs. Raises
    TrackingOutageError.
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
