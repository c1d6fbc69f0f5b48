"""`dedup: exact`: each text once, across files, and after a resume at any document."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.data.documents import DocumentStream, single_pass
from nanochat.data.task_rows import iter_rows
from nanochat.tasks.conversations import read_conversations

TEXTS = ["a", "b", "a", "c", "b", "d", "a", "e"]


def test_dedup_keeps_the_first_of_equal_documents_across_files(files, base):
    files.jsonl("1.jsonl", [{"text": text} for text in TEXTS[:4]])
    files.parquet("2.parquet", TEXTS[4:])
    files.text("valid.jsonl", '{"text": "z"}\n')
    plain, exact = files.source("*"), files.source("*", dedup="exact")
    assert sorted(single_pass(plain, "train", base=base)) == sorted(TEXTS)
    assert sorted(single_pass(exact, "train", base=base)) == ["a", "b", "c", "d", "e"]


def test_dedup_counts_what_it_leaves_out_once(files, base):
    files.jsonl("train.jsonl", [{"text": text} for text in TEXTS])
    files.text("valid.jsonl", '{"text": "z"}\n')
    notes = []
    stream = DocumentStream(files.source("*", dedup="exact"), "train", base=base, notify=notes.append)
    assert [next(stream) for _ in range(15)] == list("abcde") * 3
    assert [note for note in notes if "duplicate" in note] == [notes[0]]
    assert "left out 3 duplicate train documents" in notes[0]


def test_dedup_leaves_validation_text_out_of_training(files, base):
    files.jsonl("train.jsonl", [{"text": text} for text in TEXTS])
    files.jsonl("valid.jsonl", [{"text": text} for text in ("a", "z", "z")])
    source = files.source("*", dedup="exact")
    assert list(single_pass(source, "train", base=base)) == ["b", "c", "d", "e"]
    assert list(single_pass(source, "validation", base=base)) == ["a", "z"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text("ab\n", min_size=1, max_size=12).filter(str.strip), min_size=3, max_size=12),
    stop=st.integers(0, 20),
    is_parquet=st.booleans(),
)
def test_dedup_resumes_exactly(files, tmp_path_factory, texts, stop, is_parquet):
    folder = tmp_path_factory.mktemp("dedup")
    files = type(files)(folder)
    for name, part in (("train-1", texts[::2]), ("train-2", texts[1::2])):
        if is_parquet:
            files.parquet(f"{name}.parquet", part, row_group_size=2)
        else:
            files.jsonl(f"{name}.jsonl", [{"text": text} for text in part])
    files.jsonl("valid.jsonl", [{"text": "zz"}])
    source = files.source("*", dedup="exact", max_document_chars=4)
    stream = DocumentStream(source, "train", base=folder)
    for _ in range(stop):
        next(stream)
    resumed = DocumentStream(source, "train", base=folder, start=stream.position())
    assert [next(stream) for _ in range(25)] == [next(resumed) for _ in range(25)]
    epoch = list(single_pass(source, "train", base=folder))
    assert len(epoch) == len(set(epoch))


def test_dedup_of_chats_and_rows(files, base):
    rows = [{"prompt": "a", "completion": "b"}, {"completion": "b", "prompt": "a"}, {"prompt": "a", "completion": "c"}]
    files.jsonl("chats.jsonl", rows)
    source = files.source("chats.jsonl", dedup="exact")
    assert len(read_conversations(source, "train", base=base)) == 2
    rows = [{"n": 1, "s": "x"}, {"n": 1, "s": "x"}, {"n": "1", "s": "x"}]
    files.text("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    kept = iter_rows(files.source("rows.jsonl", dedup="exact"), "train", base=base)
    assert [row.values for row in kept] == [rows[0], rows[2]]
