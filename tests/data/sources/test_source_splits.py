"""Tests of which files a source has, which of them belong to a split, and what is said about the others."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.documents import single_pass
from nanochat.data.files.selection.file_choice import COPY
from nanochat.data.source_splits import document_files, has_split, row_files
from nanochat.data.sources.source_contents import list_files
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.data.task_rows import iter_rows
from nanochat.errors import PreflightError, StageError


def names_of(files):
    return [file.path.name for file in files]


def reasons_of(choice):
    return {path.name: reason for path, reason in choice.left_out}


def used_for(files, base, split, *patterns):
    return names_of(row_files(files.source(*patterns), split, base=base).used)


@pytest.fixture
def ultra(files):
    """The file names of a chat data set with four splits."""
    for name in ("train_sft", "test_sft", "train_gen", "test_gen"):
        files.jsonl(f"data/{name}-00000-of-00001-abc123.jsonl", [{"question": name, "answer": "a"}])
    return files


def test_row_files_prefers_the_exact_label_to_all_files_of_a_split(ultra, base):
    assert used_for(ultra, base, "train_sft", "") == ["train_sft-00000-of-00001-abc123.jsonl"]
    assert len(used_for(ultra, base, "train", "")) == 2
    assert reasons_of(row_files(ultra.source(""), "train_sft", base=base)) == {
        f"{name}-00000-of-00001-abc123.jsonl": "another split" for name in ("test_gen", "test_sft", "train_gen")
    }


def test_row_files_refuses_an_unknown_split_and_lists_the_known_ones(ultra, base):
    with pytest.raises(PreflightError, match=r"no file of split `trian_sft`; .*test_gen \(1\), .*train_sft \(1\)"):
        row_files(ultra.source(""), "trian_sft", base=base)
    ultra.jsonl("other/own.jsonl", [{"a": 1}])
    with pytest.raises(PreflightError, match=r"no file of split `trian`; the names of its files contain no split"):
        row_files(ultra.source("other"), "trian", base=base)


@pytest.mark.parametrize("split", ["train", "test"])
def test_row_files_uses_every_listed_file_if_one_tells_no_split(files, base, split):
    for name in ("cooking.jsonl", "model_train.jsonl"):
        files.jsonl(name, [{"a": 1}])
    choice = row_files(files.source("cooking.jsonl", "model_train.jsonl"), split, base=base)
    assert names_of(choice.used) == ["cooking.jsonl", "model_train.jsonl"] and choice.notes


def test_row_files_of_listed_files_that_all_tell_a_split(files, base):
    for name in ("train.jsonl", "test.jsonl"):
        files.jsonl(name, [{"a": 1}])
    assert used_for(files, base, "train", "train.jsonl", "test.jsonl") == ["train.jsonl"]
    choice = row_files(files.source("test.jsonl"), "train", base=base)
    assert names_of(choice.used) == ["test.jsonl"]
    assert choice.notes == ("the listed files are used for `train` although their names say `test`",)


def test_row_files_names_the_files_of_a_folder_that_tell_no_split(files, base):
    for name in ("cooking.jsonl", "model_train.jsonl"):
        files.jsonl(f"mixed/{name}", [{"a": 1}])
    choice = row_files(files.source("mixed"), "train", base=base)
    assert names_of(choice.used) == ["model_train.jsonl"]
    assert reasons_of(choice) == {"cooking.jsonl": "no split in its name"}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train_0.jsonl", "test_0.jsonl"),
        ("Train.jsonl", "Test.jsonl"),
        ("chats.train.jsonl", "chats.test.jsonl"),
        ("train/a/x.jsonl", "test/a/x.jsonl"),
        ("train_sft.jsonl", "test_sft.jsonl"),
    ],
)
def test_row_files_knows_the_usual_spellings_of_a_split(files, base, train, test):
    for name in (train, test):
        files.jsonl(f"folder/{name}", [{"a": name}])
    paths = row_files(files.source("folder"), "train", base=base).paths
    assert [path.relative_to(files.folder / "folder").as_posix() for path in paths] == [train]
    assert has_split(files.source("folder"), "test", base=base)


def test_row_files_ignores_the_name_of_the_folder_that_contains_everything(files, base):
    files.jsonl("dev/chats.jsonl", [{"a": 1}])
    for pattern in ("dev", "dev/chats.jsonl", "dev/*.jsonl"):
        assert used_for(files, base, "train", pattern) == ["chats.jsonl"]


def test_row_files_of_several_folders_takes_each_for_a_split(files, base):
    for name in ("train", "test"):
        files.jsonl(f"{name}/0.jsonl", [{"a": name}])
    paths = row_files(files.source("train", "test"), "train", base=base).paths
    assert [path.parent.name for path in paths] == ["train"]


def documents(spec, split, base):
    try:
        return sorted(single_pass(spec, split, base=base))
    except StageError:
        return []


@pytest.fixture
def corpus(files):
    """A corpus with a file for each split, two documents in each."""
    for name in ("train", "valid", "test"):
        files.jsonl(f"corpus/{name}.jsonl", [{"text": f"{name} {i}"} for i in range(2)])
    return files


def test_document_files_validate_on_validation_files_and_leave_out_test_files(corpus, base):
    spec = corpus.source("corpus")
    assert documents(spec, "train", base) == ["train 0", "train 1"]
    assert documents(spec, "validation", base) == ["valid 0", "valid 1"]
    assert reasons_of(document_files(spec, base=base).choice) == {"test.jsonl": "test files are never trained on"}


def test_document_files_validate_on_test_files_without_validation_files(corpus, base):
    (corpus.folder / "corpus/valid.jsonl").unlink()
    assert documents(corpus.source("corpus"), "validation", base) == ["test 0", "test 1"]
    assert documents(corpus.source("corpus"), "train", base) == ["train 0", "train 1"]


@pytest.mark.parametrize("setting", [{"validation_shard": "valid.jsonl"}, {"validation_hash_frac": 0.5}])
def test_document_files_follow_the_validation_of_the_recipe_but_never_train_on_held_out_files(corpus, base, setting):
    spec = corpus.source("corpus", **setting)
    held_out = ["valid 0", "valid 1"] if "validation_shard" in setting else []
    both = documents(spec, "train", base) + documents(spec, "validation", base)
    assert sorted(both) == ["train 0", "train 1", *held_out]
    assert "test.jsonl" in reasons_of(document_files(spec, base=base).choice)


def test_document_files_that_are_listed_are_all_used(corpus, base):
    corpus.text("a.txt", "plain")
    for names, texts in (
        (("a.txt", "corpus/test.jsonl"), ["plain", "test 0", "test 1"]),
        (("corpus/test.jsonl",), ["test 0", "test 1"]),
    ):
        spec = corpus.source(*names)
        assert sorted([*documents(spec, "train", base), *documents(spec, "validation", base)]) == texts


def test_document_files_of_a_folder_of_test_files_are_no_training_text(corpus, base):
    (corpus.folder / "corpus/train.jsonl").unlink()
    with pytest.raises(PreflightError, match="no file to train on, because all their names say validation or test"):
        documents(corpus.source("corpus"), "train", base)


def test_names_that_differ_only_in_the_split_tell_it(files, base):
    names = ["en/train_a_b-00001-of-00002", "en/train_a_b-00002-of-00002", "en/test_a_b-00001-of-00001", "fr/test_a_b"]
    for name in [*names, "x/eval_c_d", "x/train_c_d", "test_drive_in_rome"]:
        files.jsonl(f"set/{name}.jsonl", [{"text": f"{name} {i}"} for i in range(2)])
    for name in ("train_model_fast.py", "test_model_fast.py"):
        files.text(f"code/{name}", "x = 1\n")
    chosen = document_files(files.source("set"), base=base)
    kept = [*names[:2], names[3], "test_drive_in_rome", "x/train_c_d"]
    assert sorted(str(file.name) for file in chosen.train) == sorted(f"{name}.jsonl" for name in kept)
    assert names_of(chosen.validation) == ["eval_c_d.jsonl"]
    assert reasons_of(chosen.choice) == {f"{Path(names[2]).name}.jsonl": "test files are never trained on"}
    note = "trained on: test_a_b.jsonl, test_drive_in_rome.jsonl (the name may mean test data: rename it then"
    assert len(chosen.choice.notes) == 1 and chosen.choice.notes[0].startswith(note)
    assert row_files(files.source("set"), "train", base=base).notes == ()
    assert row_files(files.source("set/fr"), "train", base=base).notes[0].startswith("trained on: test_a_b.jsonl (")
    assert len(document_files(files.source("code"), base=base).train) == 2


def test_note_on_a_doubtful_name_says_how_to_hold_the_file_out(files, base):
    for name in ("test drive.md", "day.md"):
        files.text(f"notes/{name}", name)
    (note,) = document_files(files.source("notes"), base=base).choice.notes
    assert note == "trained on: test drive.md (the name may mean test data: move it into a folder `test` then)"
    files.text("notes/test/drive.md", "test")
    assert names_of(document_files(files.source("notes"), base=base).validation) == ["drive.md"]
    files.jsonl("rows/test drive.jsonl", [{"text": "x"}])
    (note,) = document_files(files.source("rows"), base=base).choice.notes
    assert note.endswith("(the name may mean test data: rename it then, for example to `test.jsonl`)")


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        ("a.md b.md test.md", ""),
        ("a.txt b.txt validation.txt dev.txt my_test_data.txt", ""),
        ("a.md dev-notes.md train-to-paris.md", ""),
        ("a.txt valid.txt train.txt", "valid.txt"),
        ("wiki.train.txt wiki.valid.txt blood_test.txt", "wiki.valid.txt"),
        ("train.jsonl test.md", "test.md"),
        ("a.md test.jsonl", "test.jsonl"),
        ("a.md test/b.md dev/c.md", "b.md"),
        ("a.md validation/b.md dev-notes/c.md", "b.md"),
        ("train/a.md dev/c.md", "c.md"),
        ("main.py test.py train.py eval.py", ""),
        ("main.py test/a.py", ""),
        ("train/a.py test/a.py", "a.py"),
    ],
)
def test_name_of_a_text_is_a_title_unless_a_train_belongs_to_it(files, base, names, held_out):
    """A note on tests must not become the whole validation. A folder of texts named test or validation is held out."""
    for number, name in enumerate(names.split()):
        content = json.dumps({"text": name}) if name.endswith("jsonl") else f"x = {number}\n"
        files.text(f"notes/{name}", content)
    chosen = document_files(files.source("notes"), base=base)
    assert sorted(names_of(chosen.validation)) == held_out.split()
    assert len(chosen.train) + len(held_out.split()) == len(names.split())


def test_list_files_reads_the_same_rows_once(files, base):
    """The names are those of a data set that holds each split as parquet and as text."""
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        files.parquet(f"set/data/{name}.parquet", [name])
    for name in ("Stories-train", "Stories-valid", "StoriesV2-all-train"):
        files.text(f"set/{name}.txt", name)
    for suffix in ("jsonl", "txt"):
        files.text(f"other/a.{suffix}", '{"text": "a"}')
    files.text("other/B.txt", "b")
    choice = list_files(files.source("set"), base=base)
    assert len(choice.used) == 3 and {path.suffix for path in choice.paths} == {".parquet"}
    assert set(reasons_of(choice).values()) == {COPY}
    assert names_of(list_files(files.source("other"), base=base).used) == ["B.txt", "a.jsonl"]
    assert len(list_files(files.source("other/a.jsonl", "other/a.txt"), base=base).used) == 2


def test_list_files_reads_every_suffix_that_a_pattern_names(files, base):
    """Notes of one name need not be one text, so a pattern's suffix is stronger than a likeness of names."""
    for name in ("todo.txt", "todo.md"):
        files.text(f"notes/{name}", name)
    assert reasons_of(list_files(files.source("notes"), base=base)) == {"todo.md": COPY}
    assert names_of(list_files(files.source("notes/*.md", "notes/*.txt"), base=base).used) == ["todo.md", "todo.txt"]
    assert names_of(list_files(files.source("notes", "notes/*.md"), base=base).used) == ["todo.md", "todo.txt"]


def test_list_files_keeps_different_texts_of_a_split(files, base):
    files.jsonl("both/wiki_train.jsonl", [{"text": "a"}])
    files.text("both/books_train.txt", "b")
    assert len(list_files(files.source("both"), base=base).used) == 2


SPELLINGS = {
    "test": [
        "test.{}",
        "TEST.{}",
        "x.test.{}",
        "test_0.{}",
        "test_sft-00000-of-00001-a1.{}",
        "test/a/b.{}",
        "c_test.{}",
    ],
    "validation": ["valid.{}", "Dev.{}", "val-00000-of-00002.{}", "validation/z.{}"],
    "train": ["train.{}", "train_1.{}", "Train/q.{}", "y-train-00001-of-00002.{}"],
    None: ["a.{}", "latest.{}", "sub/deep/b [1].{}", "contest.{}", "sub/c.{}"],
}
SUFFIXES = ["txt", "TXT", "jsonl", "Jsonl", "parquet", "md", "pdf", "jsonl.gz"]


def split_of_entry(name, split, entries):
    """Return the split of an entry as the rules say. The name of a text alone is a title, unless `train` is beside it.

    The names of texts for training above have no prefix, or a prefix of their own.
    """
    is_text = name.lower().endswith(("txt", "md"))
    is_in_folder = any(part in ("test", "validation") for part in Path(name).parts[:-1])
    is_plain = Path(name).name.lower().removeprefix("._").startswith(("test.", "test_0.", "valid.", "dev.", "val-0"))
    visible = [other for other in entries if not any(part.startswith(".") for part in Path(other).parts)]
    trained = any(
        entries[other][0] == "train" and not Path(other).name.startswith("y-")
        for other in visible
        if "pdf" not in other
    )
    return None if split != "train" and is_text and not is_in_folder and not (is_plain and trained) else split


@st.composite
def folders(draw):
    """Yield (path, split, is_empty) of files, and (path, target) of links to files and folders."""
    entries = {}
    for _ in range(draw(st.integers(1, 7))):
        split = draw(st.sampled_from(list(SPELLINGS)))
        name = draw(st.sampled_from(SPELLINGS[split])).format(draw(st.sampled_from(SUFFIXES)))
        parent = draw(st.sampled_from(["", "", "more/", ".hidden/", "more/.git/"]))
        prefix = draw(st.sampled_from(["", "", "", "._"])) if "/" not in name else ""
        entries[f"{parent}{prefix}{name}"] = (split, draw(st.booleans()) and draw(st.booleans()))
    links = draw(st.lists(st.sampled_from(["loop", "more/up", "again"]), unique=True))
    return entries, links


def write_folder(folder, entries, links):
    """Write a document in each file, and return the document's split and the file's path by document."""
    texts = {}
    for number, (name, (split, is_empty)) in enumerate(entries.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"text {number} of {split}"
        if is_empty:
            path.write_bytes(b"")
        elif path.suffix == ".parquet":
            pq.write_table(pa.table({"text": [text]}), path)
        else:
            content = (json.dumps({"text": text}) if "json" in path.name.lower() else text).encode()
            path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        texts[text] = split_of_entry(name, split, entries), path
    for link in links:
        target = next(iter(texts.values()))[1] if link == "again" else folder
        path = folder / (link + target.suffix)
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(target)
    return texts


def visible_and_hidden(folder):
    """Return the real paths of all visible files, and the paths of the topmost hidden files and folders."""
    visible, hidden = set(), set()
    for top, names, files in os.walk(folder):
        hidden |= {Path(top, name) for name in [*names, *files] if name.startswith(".")}
        names[:] = [name for name in names if not name.startswith(".")]
        visible |= {Path(top, name) for name in files if not name.startswith(".") and not Path(top, name).is_symlink()}
    return visible, hidden


@settings(max_examples=50, deadline=None)
@given(folders())
def test_every_file_of_a_folder_is_used_or_left_out_and_no_test_text_is_trained_on(case):
    entries, links = case
    with tempfile.TemporaryDirectory() as name:
        folder, base = Path(name).resolve() / "data", Path(name) / "base"
        folder.mkdir()
        texts = write_folder(folder, entries, links)
        spec = SourceSpec(name="mine", path=(str(folder),))
        try:
            files = document_files(spec, base=base)
        except PreflightError:
            visible, _ = visible_and_hidden(folder)
            assert not any(p.suffix != ".pdf" and p.stat().st_size for p in visible)
            return
        choice = files.choice
        visible, hidden = visible_and_hidden(folder)
        found = [path.resolve() if not path.name.startswith(".") else path for path in choice.paths]
        found += [path.resolve() if reason != "hidden" else path for path, reason in choice.left_out]
        targets = {path.resolve() for path in folder.glob("again*")}  # a link may lead to a hidden file
        assert len(found) == len(set(found)) and all(reason for _, reason in choice.left_out)
        assert set(found) - targets == (visible | hidden) - targets
        for split in ("train", "validation"):
            if split == "train" and not files.train:
                continue
            read = documents(spec, split, base)
            assert len(read) == len(set(read))
            if split == "train":
                assert {texts[text][0] for text in read} <= {"train", None}
        try:
            rows = [str(row.values["text"]) for row in iter_rows(spec, "train", base=base)]
        except PreflightError:
            return
        assert {texts[text][0] for text in rows} <= {"train", None}
