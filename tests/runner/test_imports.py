"""Tests of what the parent process must never import."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.runner.store.run_catalog import list_runs

CODE = """
import importlib.util, sys
import nanochat.runner.report.run_report as report
from pathlib import Path
from unittest.mock import MagicMock
spec = importlib.util.spec_from_file_location("bench", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
report.draw_curves = report.draw_scores = lambda *given: []
bench = module.Bench(Path(sys.argv[2]), MagicMock)
for _ in range(2):
    bench.run(*sys.argv[4:], last=sys.argv[3])
print(sorted({"mlx", "mlflow"} & {name.split(".")[0] for name in sys.modules}))
"""


def loaded_after_runs(tmp_path, last, *overrides) -> str:
    bench = Path(__file__).with_name("conftest.py")
    arguments = [sys.executable, "-c", CODE, str(bench), str(tmp_path), last, *overrides]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()


def test_run_without_tracking_imports_neither_mlx_nor_mlflow(tmp_path):
    assert loaded_after_runs(tmp_path, "chat_eval") == "[]"


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_uploaded_run_with_nothing_to_do_does_not_import_mlflow(bench, tmp_path, fresh_database):
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    run = bench.run("tracking.kind=mlflow", last="tokenizer")
    assert "MLflow:" in bench.display.text
    assert loaded_after_runs(tmp_path, "tokenizer", "tracking.kind=mlflow") == "[]"
    assert [r.folder for r in list_runs(bench.base)] == [run.folder]
