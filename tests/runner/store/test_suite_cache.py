"""Tests that a changed evaluation runs only the suites that changed."""

from __future__ import annotations

import copy
import shutil

import pytest

from nanochat.plan.fingerprint import fingerprint_document
from nanochat.runner.store.record import StageIdentity, read_identity
from nanochat.runner.store.suite_cache import reuse_suites
from nanochat.storage.files import write_text
from nanochat.storage.layout import stage_folder, stage_folders
from nanochat.storage.suite_files import read_suite, write_suite

DOCUMENT = {
    "stage": "chat_eval",
    "code": 1,
    "seed": 42,
    "fields": {
        "chat_eval.suites.arc.task": "arc_easy",
        "chat_eval.suites.arc.source": "science",
        "chat_eval.suites.spelling.task": "spelling_bee",
        "chat_eval.suites.spelling.source": "words",
        "sources.science.text_column": "q",
    },
    "sources": {"science": "a" * 64, "words": "b" * 64},
    "upstream": {"sft": "c" * 64},
}


def identity(changes: dict[str, object]) -> StageIdentity:
    """Return an identity with some values of DOCUMENT changed. A key is a path with slashes."""
    document = copy.deepcopy(DOCUMENT)
    for path, value in changes.items():
        *outer, key = path.split("/")
        (document[outer[0]] if outer else document)[key] = value
    return StageIdentity(stage="chat_eval", fingerprint=fingerprint_document(document), document=document)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fields/chat_eval.suites.spelling.max_tokens": 9}, ["arc"]),
        ({"fields/chat_eval.suites.mmlu.task": "mmlu"}, ["arc", "spelling"]),
        ({"sources/science": "d" * 64}, ["spelling"]),
        ({"fields/sources.science.text_column": "text"}, ["spelling"]),
        ({"upstream/sft": "d" * 64}, []),
        ({"seed": 43}, []),
        ({"code": 2}, []),
    ],
)
def test_reuse_suites_copies_suites_whose_inputs_are_unchanged(tmp_path, changes, expected):
    """A suite depends on its own fields, the fields and data of its source, the model, the seed and the code."""
    before, after = identity({}), identity(changes)
    old, new = (stage_folder(tmp_path, "chat_eval", content.fingerprint) for content in (before, after))
    before.write(old.identity)
    for name in ("arc", "spelling"):
        finish_suite(old, name)
    after.write(new.identity)
    assert reuse_suites(new, after, tmp_path) == expected
    assert {path.stem for path in new.suites.glob("*")} == {path.stem for path in new.tables.glob("*")} == set(expected)
    for name in expected:
        assert read_suite(new, name)["metrics"] == {name: 0.5}
        assert new.table(name).read_text() == f"records of {name}\n"
    assert reuse_suites(new, after, tmp_path) == []


def finish_suite(folder, name):
    write_text(folder.table(name), f"records of {name}\n")
    write_suite(folder, name, {"metrics": {name: 0.5}, "score": None, "seconds": 1.0})


def flip(path):
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.7").replace(b"records", b"recalls"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder, other: flip(folder.suite("arc")),
        lambda folder, other: flip(folder.table("arc")),
        lambda folder, other: folder.table("arc").unlink(),
        lambda folder, other: shutil.copy(other.suite("arc"), folder.suite("arc")),
        lambda folder, other: shutil.copy(other.identity, folder.identity),
    ],
    ids=[
        "result flipped",
        "table flipped",
        "table lost",
        "result of a different stage",
        "identity of a different stage",
    ],
)
def test_reuse_suites_copies_nothing_that_is_damaged(tmp_path, damage):
    """The suite runs again, and the other one is copied unless it is unknown to which stage it belongs."""
    before, after = identity({}), identity({"fields/chat_eval.suites.mmlu.task": "mmlu"})
    stranger = identity({"upstream/sft": "d" * 64})
    old, new, other = (stage_folder(tmp_path, "chat_eval", x.fingerprint) for x in (before, after, stranger))
    for content, folder in ((before, old), (stranger, other)):
        content.write(folder.identity)
        for name in ("arc", "spelling"):
            finish_suite(folder, name)
    damage(old, other)
    reused = reuse_suites(new, after, tmp_path)
    assert "arc" not in reused and (reused == ["spelling"] or read_identity(old) is None)
    assert not new.table("arc").exists()


def test_evaluation_with_changed_samples_keeps_its_suites_unless_forced(bench):
    bench.run(last="base_eval")
    first = bench.stage_folder("base_eval")
    write_suite(first, "bpb", {"metrics": {}, "score": None, "seconds": 1.0})
    bench.run("base_eval.samples=[hello]", last="base_eval", force=("base_eval",))
    (second,) = (f for f in stage_folders(bench.base) if f.stage == "base_eval" and f != first)
    assert not second.suites.exists()
    bench.run("base_eval.samples=[good day]", last="base_eval")
    assert "3-base_eval: from cache: bpb" in bench.display.lines
