"""Seeds depend on every name and on nothing else."""

from __future__ import annotations

import hashlib

from nanochat.stages.randomness import derive_seed


def test_the_seed_is_the_documented_hash():
    digest = hashlib.sha256(b"nanochat/42/pretrain/init").hexdigest()
    assert derive_seed(42, "pretrain", "init") == int(digest[:16], 16) // 2


def test_every_name_and_seed_gives_another_one():
    seeds = [derive_seed(s, *n) for s in (0, 1) for n in (("sft",), ("pretrain",), ("sft", "order"), ("sft", 1))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
