"""The verb of `nanochat-run` that serves a model to browsers and to clients of the OpenAI API."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat import runtime
from nanochat.api.models import open_engine
from nanochat.errors import RecipeError
from nanochat.runner.report.results import list_results
from nanochat.runner.store.run_catalog import find_model, find_run
from nanochat.storage.layout import CONFIG_FILE

if TYPE_CHECKING:  # MLX is imported after `runtime.prepare`
    from nanochat.inference.engine import Engine
    from nanochat.serve.app import Served


def serve(options: argparse.Namespace) -> None:
    """Serve a run's model until interrupted."""
    base = runtime.base_dir()
    folder = find_model(options.model, base)
    chosen = runtime.prepare(device=options.device)
    from nanochat.serve import server

    address = server.Address(host=options.host, port=options.port, key=runtime.environment("NANOCHAT_SERVE_KEY"))

    def load() -> Engine:
        return open_engine(folder, chosen)

    def announce(url: str) -> None:
        print(f"chat page   {url}\nOpenAI API  {url}v1\nCtrl-C finishes the running answers and stops", flush=True)

    served = _describe(options.model, folder, base)
    server.serve(load, served, address, max_rows=options.rows, announce=announce)


def _describe(reference: str, folder: Path, base: Path) -> Served:
    """Return the name, the scores and the report of a run; of a folder that is not a run's, its name alone."""
    from nanochat.serve.app import Served

    created = int((folder / CONFIG_FILE).stat().st_mtime)
    try:
        run = find_run(reference, base)
    except RecipeError:
        return Served(Path(reference).resolve().name, created, (), None)
    results = list_results(run.records(base))
    scores = tuple(str(result) for result in results if result.count is not None or result.metric == "bpb")
    report = run.folder.report_page
    return Served(run.state.name, created, scores, report if report.is_file() else None)
