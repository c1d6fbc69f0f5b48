"""Sweeps of a small model on the standard library, as a user runs them: killed, continued, with a diverging cell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

RECIPE = """\
nanochat: 1
name: grid
sources:
  stdlib: {builtin: python-stdlib, max_files: 24, max_document_chars: 200}
tokenizer: {source: stdlib, vocab_size: 512, max_chars: 200K}
model: {n_layer: 2, n_embd: 64, n_head: 2, sequence_len: 64, window_pattern: SL}
pretrain:
  data: {stdlib: {weight: 1}}
  horizon: {steps: 20}
  tokens_per_step: 512
  buffer_documents: 32
base_eval:
  suites: {bpb: {task: bpb, tokens: 2048}}
tracking: {kind: none}
sweep:
  until: base_eval
  rank_by: {base_eval.bpb: min}
"""
GRID = RECIPE + "  over: {pretrain.optimizer.matrix_lr: [0.01, 0.02, 0.04], model.n_layer: [1, 2, 3]}\n"
DIVERGING = RECIPE + (
    "  over: {pretrain.optimizer.lr_scale: [0.5, 1, 2, 4, 1e30], model.n_layer: [1, 2]}\n"
    "  where: pretrain.optimizer.lr_scale < 1e30 or model.n_layer == 1\n"
)


class Place:
    """A folder with a recipe and a base folder of its own."""

    def __init__(self, folder: Path, recipe: str) -> None:
        folder.mkdir()
        (folder / "grid.yaml").write_text(recipe)
        self.folder, self.base = folder, folder / "base"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "nanochat.cli.run", *(arguments or ("grid.yaml", "--offline"))]
        environment = os.environ | {"NANOCHAT_BASE_DIR": str(self.base)}
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate()
        return process.returncode, out, err

    def computed(self, stage: str) -> int:
        return len(list((self.base / "stages" / stage).glob("*/record.json")))


def table(output: str) -> list[str]:
    """The table of results and the ranking, which are printed before the path of the report."""
    lines = output.splitlines()
    ends = [i for i, line in enumerate(lines) if line.startswith("report: ")]
    return lines[max(i for i, line in enumerate(lines) if line.startswith("cell  ")) : ends[-1]]


def test_a_sweep_that_is_killed_in_its_fifth_cell_ends_with_the_same_table(tmp_path):
    calm, killed = Place(tmp_path / "calm", GRID), Place(tmp_path / "killed", GRID)
    code, output, _ = calm.run()
    assert code == 0
    assert [calm.computed(stage) for stage in ("tokenizer", "pretrain", "base_eval")] == [1, 9, 9]
    assert sum("1-tokenizer: from cache" in line for line in output.splitlines()) == 8
    process = killed.start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("cell 5/9: 2-pretrain: runs"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert killed.computed("pretrain") == 4
    code, again, _ = killed.run()
    assert code == 0
    assert table(again) == table(output)
    assert len(table(output)) > 12


def test_a_diverging_cell_ends_with_exit_code_4_and_eight_results(tmp_path):
    place = Place(tmp_path / "place", DIVERGING)
    code, output, errors = place.run()
    assert code == 4
    assert "1 of 9 cells did not succeed" in errors
    statuses = [line.split()[4] for line in table(output)[2:11]]
    assert sorted(statuses) == ["failed", *["finished"] * 8]
    code, _, _ = place.run("plan", "grid.yaml", "--json")
    assert code == 0


def test_two_cells_at_once_share_the_tokenizer_through_its_lock(tmp_path):
    place = Place(tmp_path / "place", GRID)
    processes = [place.start("sweep", "grid.yaml", "--offline", "--cell", str(cell)) for cell in (1, 2)]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert [place.computed(stage) for stage in ("tokenizer", "pretrain", "base_eval")] == [1, 2, 2]
    computed = [sum("1-tokenizer: done" in line for line in output.splitlines()) for output in outputs]
    assert sorted(computed) == [0, 1]
    (state,) = (place.base / "sweeps" / "grid").glob("*/sweep.json")
    assert len(json.loads(state.read_text())["cells"]) == 9
