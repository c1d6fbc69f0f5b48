"""Tests that records are read back as written or not at all, and that digests can be recomputed."""

from __future__ import annotations

import hashlib
import math

import pytest

from nanochat.runner.store.record import describe_files, output_digest, outputs, read_identity, read_record
from nanochat.storage.layout import StageFolder


def test_output_digest_is_the_hash_of_sorted_paths_and_hashes(tmp_path):
    """Computed by hand. Files of wall-clock times and outside `out/` are left out."""
    outside = {"log.txt": b"", "metrics.jsonl": b"\n"}
    for name, content in {"out/b/x.bin": b"\0\1", "out/a.json": b"{}", "out/timings.json": b"1.5", **outside}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    described = describe_files(StageFolder(tmp_path))
    a, x = hashlib.sha256(b"{}").hexdigest(), hashlib.sha256(b"\0\1").hexdigest()
    assert list(described) == ["metrics.jsonl", "out/a.json", "out/b/x.bin", "out/timings.json"]
    assert outputs(described) == {"a.json": a, "b/x.bin": x}
    assert output_digest(outputs(described)) == hashlib.sha256(f"a.json\0{a}\nb/x.bin\0{x}\n".encode()).hexdigest()


def test_record_with_nan_and_infinity_is_read_back(bench):
    """Otherwise the stage would look unfinished."""
    record = bench.run(last="tokenizer").records(bench.base)["tokenizer"]
    folder = bench.stage_folder("tokenizer")
    record.model_copy(update={"metrics": {"loss": math.nan, "top": math.inf}}).write(folder.record)
    metrics = read_record(folder).metrics
    assert math.isnan(metrics["loss"]) and metrics["top"] == math.inf


def test_damaged_record_or_identity_of_another_stage_counts_as_missing(bench):
    bench.run(last="pretrain")
    tokenizer, pretrain = bench.stage_folder("tokenizer"), bench.stage_folder("pretrain")
    whole = tokenizer.record.read_bytes()
    for damaged in (whole.replace(b'"finished": 1', b'"finished": 2'), whole[:-1], pretrain.record.read_bytes()):
        assert damaged != whole
        tokenizer.record.write_bytes(damaged)
        assert read_record(tokenizer) is None
        assert read_identity(tokenizer).stage == "tokenizer"
    tokenizer.identity.write_bytes(pretrain.identity.read_bytes())
    assert read_identity(tokenizer) is None
    tokenizer.record.write_bytes(whole)
    assert read_identity(tokenizer).stage == "tokenizer"


@pytest.mark.parametrize("key", ["format", "files", "content_sha256"])
def test_record_without_one_of_its_keys_counts_as_missing(bench, key):
    bench.run(last="tokenizer")
    folder = bench.stage_folder("tokenizer")
    folder.record.write_text(folder.record.read_text().replace(f'"{key}"', f'"x{key[1:]}"'))
    assert read_record(folder) is None
