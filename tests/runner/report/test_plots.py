"""Tests of the learning curves."""

from __future__ import annotations

import json

from nanochat.runner.report.plots import draw_curves


def test_draw_curves_skips_stages_without_metrics_by_step(tmp_path):
    stream = tmp_path / "metrics.jsonl"
    lines = [{"step": s, "metrics": {"train/loss": 1.0 / s, "train/lr": 0.1, "val/bpb": 2.0}} for s in range(1, 150)]
    stream.write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = draw_curves({"pretrain": stream, "base_eval": tmp_path / "none.jsonl"}, tmp_path / "plots")
    assert [path.name for path in drawn] == ["loss.png", "learning_rate.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in drawn)
    assert draw_curves({"base_eval": tmp_path / "none.jsonl"}, tmp_path / "other") == []


def test_draw_curves_shows_the_scores_of_suites_during_training(tmp_path):
    stream = tmp_path / "metrics.jsonl"
    metrics = {"eval/arc": 0.25, "eval/arc.stderr": 0.01, "val/bpb": 2.0}
    stream.write_text(json.dumps({"step": 5, "metrics": metrics}) + "\n")
    assert [path.name for path in draw_curves({"sft": stream}, tmp_path / "plots")] == ["loss.png", "suites.png"]
