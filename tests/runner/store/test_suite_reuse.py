"""Tests that a changed evaluation runs only the suites that changed."""

from __future__ import annotations

import copy

import pytest

from nanochat.runner.store.record import StageIdentity
from nanochat.runner.store.suite_reuse import reuse_suites
from nanochat.storage.layout import stage_folder, stage_folders

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


def identity(changes: dict[str, object], number: str) -> StageIdentity:
    """Return an identity with some values of DOCUMENT changed. A key is a path with slashes."""
    document = copy.deepcopy(DOCUMENT)
    for path, value in changes.items():
        *outer, key = path.split("/")
        (document[outer[0]] if outer else document)[key] = value
    return StageIdentity(stage="chat_eval", fingerprint=number * 64, document=document)


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
    before, after = identity({}, "1"), identity(changes, "2")
    old, new = (stage_folder(tmp_path, "chat_eval", content.fingerprint) for content in (before, after))
    before.write(old.identity)
    (old.out / "tables").mkdir(parents=True)
    old.suites.mkdir()
    for name in ("arc", "spelling"):
        (old.suites / f"{name}.json").write_text(f"result of {name}")
        (old.out / "tables" / f"{name}.jsonl").write_text(f"records of {name}")
    after.write(new.identity)
    assert reuse_suites(new, after, tmp_path) == expected
    for folder, what in ((new.suites, "result"), (new.tables, "records")):
        assert {path.stem: path.read_text() for path in folder.glob("*")} == {n: f"{what} of {n}" for n in expected}
    assert reuse_suites(new, after, tmp_path) == []


def test_evaluation_with_changed_samples_keeps_its_suites_unless_forced(bench):
    bench.run(last="base_eval")
    first = bench.stage_folder("base_eval")
    first.suites.mkdir()
    (first.suites / "bpb.json").write_text("{}")
    bench.run("base_eval.samples=[hello]", last="base_eval", force=("base_eval",))
    (second,) = (f for f in stage_folders(bench.base) if f.stage == "base_eval" and f != first)
    assert not second.suites.exists()
    bench.run("base_eval.samples=[good day]", last="base_eval")
    assert "3-base_eval: from cache: bpb" in bench.display.lines
