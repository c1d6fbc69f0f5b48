"""Model folders that are malformed end in an error or give the same results, and never end the process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.checkpoint.model_folder import save_model
from nanochat.tokenizer import bpe

SCRIPT = Path(__file__).with_name("load_malformed_folders.py")


@pytest.fixture(scope="module")
def good_folder(make_random_model, tmp_path_factory):
    text = ["the cat sat on the mat. " * 20] * 5
    tokenizer = bpe.train(text, vocab_size=300, max_chars=10_000, max_document_chars=1000)
    shape = {"n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 64, "window_pattern": "SL", "sequence_len": 96}
    folder = tmp_path_factory.mktemp("good") / "model"
    save_model(folder, make_random_model("current", vocab_size=tokenizer.vocab_size, **shape), tokenizer)
    return folder


def load_all(good_folder: Path, scratch: Path, seeds: range) -> list[dict]:
    """Return what became of the folders of these seeds, all loaded by one process."""
    # Threads of MLX's BLAS library would take address space, which is limited.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(good_folder), str(scratch), str(seeds.start), str(seeds.stop)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"ended with {ran.returncode}:\n{ran.stderr[-3000:]}"
    return [json.loads(line) for line in ran.stdout.splitlines()]


def check(reports: list[dict]) -> None:
    wrong = [report for report in reports if report["outcome"] not in report["allowed"]]
    assert not wrong, "\n".join(map(json.dumps, wrong))
    for report in reports:
        assert report["is_recognised"] != report["is_same"], f"the manifest must show the change: {report}"
        assert len(report["message"]) < 2000, f"the message of seed {report['seed']} is too long"
        if report["outcome"] == "refused":
            names = ("config.json", "model.safetensors", "tokenizer.model")
            assert any(name in report["message"] for name in names), f"no file is named: {report}"


def test_malformed_folders_are_refused_or_give_equal_results(good_folder, tmp_path):
    """Two folders of each mutation. Without the manifest the content is checked, with it the digests."""
    reports = load_all(good_folder, tmp_path, range(68))
    check(reports)
    assert len(reports) == 68


@pytest.mark.slow
def test_many_malformed_folders_are_refused_or_give_equal_results(good_folder, tmp_path):
    reports = load_all(good_folder, tmp_path, range(68, 68 + 340))
    check(reports)
    assert len(reports) == 340
