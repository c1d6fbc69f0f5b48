"""Tests that the token cache gives the tokens, batches and states of tokenizing on the fly, also after a kill."""

from __future__ import annotations

import json
import os
import shutil
import threading

import numpy as np
import pytest

from nanochat.data.documents import DocumentStream
from nanochat.data.loaders.batches import BatchLoader
from nanochat.data.loaders.document_rows import DocumentRows
from nanochat.data.token_cache import cache as token_cache
from nanochat.data.token_cache.cache import cached_stream
from nanochat.data.token_cache.parts import read_list, write_list
from nanochat.errors import InterruptedRun, PreflightError
from nanochat.tokenizer import bpe

TEXTS = [f"document {i}: " + "a few words and then some more of them. " * (i % 9) for i in range(250)]


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.train(TEXTS, vocab_size=320, max_chars=10**6, max_document_chars=10**4)


@pytest.fixture
def source(files):
    """A source of three files of different formats."""
    files.parquet("a.parquet", TEXTS[:100], row_group_size=35)
    files.jsonl("b.jsonl", [{"text": text} for text in TEXTS[100:175]])
    files.text("c.txt", "".join(text + "\n" for text in TEXTS[175:]))
    return files.source("*", max_document_chars=90, validation_hash_frac=0.2)


def loader_of(stream, tokenizer):
    rows = DocumentRows([(stream, 1.0)], tokenizer, sequence_len=40, buffer_documents=20, long_documents="keep")
    return BatchLoader(rows, rows_per_batch=4, pad_id=tokenizer.bos_id)


def same_batch(one, other):
    np.testing.assert_array_equal(one.inputs, other.inputs)
    np.testing.assert_array_equal(one.targets, other.targets)


def same_state(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other[name])
        else:
            assert json.dumps(value) == json.dumps(other[name])


def test_documents_positions_and_epochs_are_those_of_the_source(source, tokenizer, base):
    stream, cached = DocumentStream(source, "train", base=base), cached_stream(source, "train", tokenizer, base=base)
    assert cached.position() == stream.position()
    seen = []
    while stream.epoch < 2:
        np.testing.assert_array_equal(next(cached), tokenizer.encode(next(stream)))
        assert (cached.position(), cached.epoch) == (stream.position(), stream.epoch)
        seen.append(stream.position())
    assert len({json.dumps(one) for one in seen}) == len(seen) > 500
    assert any(one["piece"] for one in seen)  # documents that are cut into pieces
    for at in seen[::37]:
        np.testing.assert_array_equal(next(cached.reopened(at)), tokenizer.encode(next(stream.reopened(at))))


def test_cached_loader_and_plain_loader_resume_from_each_other_s_state(source, tokenizer, base):
    plain = loader_of(DocumentStream(source, "train", base=base), tokenizer)
    cached = loader_of(cached_stream(source, "train", tokenizer, base=base), tokenizer)
    for step in range(160):
        same_batch(plain.next(), cached.next())
        same_state(plain.state_dict(), cached.state_dict())
        if step in (3, 70, 140):
            there, back = json.loads(json.dumps(plain.state_dict()["position"])), cached.state_dict()
            cached.load_state_dict({**plain.state_dict(), "position": there})
            plain.load_state_dict(back)
    assert plain.state.epoch == cached.state.epoch > 0
    plain.close()
    cached.close()


def test_cache_is_built_once_and_memory_mapped(source, tokenizer, base, monkeypatch):
    cached_stream(source, "train", tokenizer, base=base)
    monkeypatch.setattr(token_cache, "_build", lambda *_: pytest.fail("built again"))
    stream = cached_stream(source, "train", tokenizer, base=base)
    assert all(isinstance(part.tokens, np.memmap) and part.tokens.dtype == np.uint16 for part in stream._parts)


@pytest.mark.parametrize(
    "change",
    [
        {"max_document_chars": 80},
        {"dedup": "exact"},
        {"validation_hash_frac": 0.3},
        {"max_files": 2},
        {"validation_shard": "c.txt"},
    ],
)
def test_cache_depends_on_the_settings_that_change_documents(files, source, tokenizer, base, change):
    first = len(list((base / "tokens").glob("*/parts.json")))
    cached_stream(source, "train", tokenizer, base=base)
    other = files.source("*", **{"max_document_chars": 90, "validation_hash_frac": 0.2, **change})
    cached_stream(other, "train", tokenizer, base=base)
    assert len(list((base / "tokens").glob("*/parts.json"))) == first + 2


def test_cache_depends_on_contents_and_tokenizer(files, source, tokenizer, base):
    names = set()
    for act in ("as it is", "another tokenizer", "other contents"):
        if act == "another tokenizer":
            chosen = bpe.train(TEXTS, vocab_size=330, max_chars=10**6, max_document_chars=10**4)
        else:
            chosen = tokenizer
        if act == "other contents":
            files.text("c.txt", "other\n" * 500)
        cached_stream(source, "train", chosen, base=base)
        names = {path.parent.name for path in (base / "tokens").glob("*/parts.json")}
    assert len(names) == 3


def test_stopped_build_leaves_only_complete_parts_and_continues_with_the_next_file(source, tokenizer, base):
    def stop(documents, tokens):
        if list(base.rglob("00000.index.npy")):
            raise InterruptedRun("stopped")

    with pytest.raises(InterruptedRun):
        cached_stream(source, "train", tokenizer, base=base, on_progress=stop)
    (folder,) = (base / "tokens").iterdir()
    assert {path.name for path in folder.iterdir()} == {".lock", "parts.json", "00000.tokens", "00000.index.npy"}
    before = (folder / "00000.tokens").stat().st_mtime_ns
    stream = cached_stream(source, "train", tokenizer, base=base)
    assert (folder / "00000.tokens").stat().st_mtime_ns == before
    plain = DocumentStream(source, "train", base=base)
    for _ in range(600):
        np.testing.assert_array_equal(next(stream), tokenizer.encode(next(plain)))


def flip(path):
    """Change one byte, but neither size nor time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


DAMAGES = {
    "00001.tokens": {
        "cut": lambda path, other: os.truncate(path, 100),
        "flipped": lambda path, other: flip(path),
        "swapped": lambda path, other: shutil.copy(other / path.name, path),
        "lost": lambda path, other: path.unlink(),
    },
    "00000.index.npy": {"flipped": lambda path, other: flip(path), "lost": lambda path, other: path.unlink()},
    "parts.json": {
        "flipped": lambda path, other: flip(path),
        "cut": lambda path, other: os.truncate(path, 100),
        "swapped": lambda path, other: shutil.copy(other / path.name, path),
        "and all files swapped": lambda path, other: shutil.copytree(other, path.parent, dirs_exist_ok=True),
        "lost": lambda path, other: path.unlink(),
    },
}


@pytest.mark.parametrize(
    ("name", "kind", "is_complete"),
    [
        *((name, kind, True) for name, kinds in DAMAGES.items() for kind in kinds),
        *((name, kind, False) for name in DAMAGES for kind in ("flipped", "lost")),
    ],
)
def test_damaged_file_of_a_cache_is_named_and_made_again(files, source, tokenizer, base, name, kind, is_complete):
    """Neither size nor time of a flipped file say that it is damaged. The cache is complete, or its making stopped."""
    cached_stream(source, "train", tokenizer, base=base)
    (folder,) = (base / "tokens").iterdir()
    cached_stream(files.source("*", max_document_chars=80), "train", tokenizer, base=base)
    (other,) = (path for path in (base / "tokens").iterdir() if path != folder)
    if not is_complete:
        listed = read_list(folder)
        parts = {number: listed.parts[number] for number in (0, 1)}
        write_list(folder, listed.model_copy(update={"is_complete": False, "parts": parts}))
    DAMAGES[name][kind](folder / name, other)
    said = []
    stream = cached_stream(source, "train", tokenizer, base=base, notify=said.append)
    assert [str(folder / name) in line for line in said] == [True] * ((name, kind) != ("parts.json", "lost"))
    plain = DocumentStream(source, "train", base=base)
    for _ in range(350):
        np.testing.assert_array_equal(next(stream), tokenizer.encode(next(plain)))
    cached_stream(source, "train", tokenizer, base=base, notify=pytest.fail)


def test_full_disk_leaves_no_part(source, tokenizer, base, monkeypatch):
    def full(path):
        if path.name.endswith(".tokens"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanochat.storage.files.sync", full)
    with pytest.raises(OSError, match="No space left"):
        cached_stream(source, "train", tokenizer, base=base)
    (folder,) = (base / "tokens").iterdir()
    assert {path.name for path in folder.iterdir()} == {".lock", "parts.json"}


def test_cache_skips_a_file_without_documents_of_the_split(files, tokenizer, base):
    files.parquet("a.parquet", TEXTS[:40])
    files.jsonl("b.jsonl", [{"text": ""}])
    files.parquet("c.parquet", TEXTS[40:80])
    source = files.source("*")
    plain, stream = DocumentStream(source, "train", base=base), cached_stream(source, "train", tokenizer, base=base)
    for _ in range(170):
        np.testing.assert_array_equal(next(stream), tokenizer.encode(next(plain)))
        assert stream.position() == plain.position()


def test_cached_stream_refuses_a_position_in_other_documents(source, tokenizer, base):
    stream = cached_stream(source, "train", tokenizer, base=base)
    for position in ({"epoch": 0}, {"epoch": 0, "part": 0, "cursor": [0, 10**6], "piece": 0}):
        with pytest.raises(PreflightError, match="start the stage over"):
            stream.reopened(position)


def test_cache_is_built_by_one_of_two_processes_while_the_other_waits(source, tokenizer, base):
    made = []

    def make():
        counts = []
        cached_stream(source, "train", tokenizer, base=base, on_progress=lambda documents, _: counts.append(documents))
        made.append(max(counts, default=0))

    workers = [threading.Thread(target=make) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert min(made) == 0 and max(made) > 250
