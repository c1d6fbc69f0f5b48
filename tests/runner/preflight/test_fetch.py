"""`nanochat-run fetch`: brings all data onto the machine, checks them, and runs no stage."""

from __future__ import annotations

import pytest

from nanochat.data.ingest.pending import is_ready
from nanochat.errors import PreflightError
from nanochat.runner.preflight.fetch import fetch_recipe


def test_fetch_converts_and_checks_and_runs_no_stage(bench):
    (bench.folder / "text.csv").write_text("text\n" + "".join(f"hello {i}\n" for i in range(30)))
    flags = [f"sources.text.path={bench.folder}/text.csv"]
    fetch_recipe(bench.recipe, flags, base=bench.base, display=bench.display)
    assert all(is_ready(source, base=bench.base) for source in bench.prepare(*flags).plan.stages[0].sources)
    assert "all data of tiny are here and can be read: text, chats, words" in bench.display.text
    assert bench.calls() == [] and not (bench.base / "runs").exists()


def test_fetch_refuses_data_that_a_stage_could_not_read(bench):
    (bench.folder / "chats.jsonl").write_text('{"prompt": "no answer"}\n')
    with pytest.raises(PreflightError, match=r"chats\.jsonl:1"):
        fetch_recipe(bench.recipe, [], base=bench.base, display=bench.display)
