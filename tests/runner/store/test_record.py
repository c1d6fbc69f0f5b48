"""Tests that records are read back as written, and that digests can be recomputed."""

from __future__ import annotations

import hashlib
import math

from nanochat.runner.store.record import output_digest, output_files, read_record
from nanochat.storage.layout import StageFolder


def test_output_digest_is_the_hash_of_sorted_paths_and_hashes(tmp_path):
    """Computed by hand. Files of wall-clock times are left out."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.bin").write_bytes(b"\0\1")
    (tmp_path / "a.json").write_bytes(b"{}")
    (tmp_path / "timings.json").write_bytes(b"1.5")
    files = output_files(tmp_path)
    a, x = hashlib.sha256(b"{}").hexdigest(), hashlib.sha256(b"\0\1").hexdigest()
    assert files == {"a.json": a, "b/x.bin": x}
    assert output_digest(files) == hashlib.sha256(f"a.json\0{a}\nb/x.bin\0{x}\n".encode()).hexdigest()


def test_record_with_nan_and_infinity_is_read_back(bench):
    """Otherwise the stage would look unfinished."""
    record = bench.run(last="tokenizer").records(bench.base)["tokenizer"]
    folder = StageFolder(bench.base / "stages" / "tokenizer" / "other")
    folder.path.mkdir()
    record.model_copy(update={"metrics": {"loss": math.nan, "top": math.inf}}).write(folder.record)
    metrics = read_record(folder).metrics
    assert math.isnan(metrics["loss"]) and metrics["top"] == math.inf
