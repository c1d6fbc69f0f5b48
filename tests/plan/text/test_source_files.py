from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.ingest.convert import convert
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.plan.specs.inputs import SftItem, WeightedSource
from nanochat.plan.specs.suites import BpbSuiteSpec, ChatSuiteSpec
from nanochat.plan.text.source_files import source_uses


def _lines(*inputs: object, look_inside: bool = False) -> list[str]:
    uses = source_uses(inputs, base=Path("base"), look_inside=look_inside)  # type: ignore[arg-type]
    return [use.describe() for use in uses]


def _documents(path: Path) -> WeightedSource:
    return WeightedSource(source=SourceSpec(name="docs", path=(str(path),)), weight=1)


def _chat_inputs(folder: Path) -> tuple[SftItem, ChatSuiteSpec]:
    source = SourceSpec(name="quiz", path=(str(folder),))
    item = SftItem(name="q", task="gsm8k", source=source, split="train[:5]", max_examples=None, repeat=1)
    suite = ChatSuiteSpec(
        task="gsm8k", source=source, split="test", max_problems=1, num_samples=1, max_tokens=1, temperature=0, top_k=1
    )
    return item, suite


def test_source_uses_count_files_and_name_those_left_out_by_reason(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 2048)
    (tmp_path / ".cache").mkdir()
    for i in range(5):
        (tmp_path / f"{i}.png").write_text("x")
    assert _lines(_documents(tmp_path)) == [
        "docs: 1 of 7 files, 2.00 KiB; left out: .cache (hidden); "
        "0.png, 1.png, 2.png and 2 more (neither text nor rows, by its suffix)"
    ]


def test_source_uses_warn_of_texts_and_rows_that_are_not_read(tmp_path: Path) -> None:
    """Pictures and hidden files are only named in the plan."""
    for name in ("a.md", "b.PDF", "c.docx", "d.json", "e.png", ".hidden.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "chats.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    documents, (item, _) = _documents(tmp_path), _chat_inputs(tmp_path)
    source = SourceSpec(name="docs", path=(str(tmp_path),))
    (use,) = source_uses([documents], base=Path("base"))
    assert use.warnings == [
        "source `docs`: 4 files with text or rows are not read: b.PDF, c.docx, d.json, chats.jsonl; "
        "`left out` in the plan says why"
    ]
    assert use.describe().endswith(
        "; left out: .hidden.md (hidden); b.PDF, c.docx (a document of another program: save it as text or as a page); "
        "e.png (neither text nor rows, by its suffix); "
        "d.json (beside files of a kind that is read first; name it or its suffix to read it); "
        "chats.jsonl (without the key or column `text`, which holds the documents; `column` names another one)"
    )
    (use,) = source_uses([item.model_copy(update={"source": source, "split": "train"})], base=Path("base"))
    assert (
        "a.md" in use.warnings[0] and "a.md (holds no rows)" in use.describe() and "chats.jsonl" not in use.warnings[0]
    )
    (use,) = source_uses([documents, item.model_copy(update={"source": source, "split": "train"})], base=Path("base"))
    assert "a.md" not in use.warnings[0] and "chats.jsonl" not in use.warnings[0]


def test_source_uses_doubt_a_tiny_validation_that_only_a_name_chose(tmp_path: Path) -> None:
    (tmp_path / "train.md").write_text("x" * 5000)
    (tmp_path / "test.md").write_text("x" * 49)
    (use,) = source_uses([_documents(tmp_path)], base=Path("base"))
    assert use.warnings == [
        "source `docs`: by the names of its files, the whole validation is test.md, 49 B beside 4.88 KiB; rename the "
        "file if it is text to train on, or set `validation`"
    ]
    shard = SourceSpec(name="docs", path=(str(tmp_path),), validation_shard="test.md")
    (use,) = source_uses([WeightedSource(source=shard, weight=1)], base=Path("base"))
    assert use.warnings == []
    (tmp_path / "test.md").write_text("x" * 50)
    (use,) = source_uses([_documents(tmp_path)], base=Path("base"))
    assert use.warnings == []


def test_source_uses_name_the_files_of_the_validation(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_text("x" * 1024)
    assert _lines(_documents(tmp_path)) == ["docs: 2 files, 2.00 KiB; validation: valid.txt"]


def test_source_uses_tell_files_of_one_name_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("train/a/x.jsonl", "test/a/x.jsonl", "test/b/y.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}\n")
    item, _ = _chat_inputs(tmp_path)
    assert _lines(item) == ["quiz: 1 of 3 files, 3 B; left out: test/a/x.jsonl, y.jsonl (another split)"]


def test_source_uses_join_the_splits_that_stages_read(tmp_path: Path) -> None:
    for name in ("train", "test", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n" * 3)
    item, suite = _chat_inputs(tmp_path)
    assert _lines(item) == ["quiz: 1 of 3 files, 9 B; left out: dev.jsonl, test.jsonl (another split)"]
    assert _lines(item, suite) == ["quiz: 2 of 3 files, 18 B; left out: dev.jsonl (another split)"]


def test_source_uses_look_inside_files_for_content_and_count_documents(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b", "c"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": pa.array([None, " "], pa.string())}), tmp_path / "2.parquet")
    (tmp_path / "3.jsonl").write_text('{"text": "x"}\n\n{"text": "y"}\n')
    (line,) = _lines(_documents(tmp_path), look_inside=True)
    assert line.startswith("docs: 2 of 4 files, 5 documents, ")
    assert line.endswith("; left out: 1.parquet, 2.parquet (empty)")
    assert _lines(_documents(tmp_path))[0].startswith("docs: 4 files, ")


def test_source_uses_look_inside_the_copies_of_converted_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("text\none\ntwo\n")
    (tmp_path / "data" / "b.csv").write_text("text\n")
    base = tmp_path / "base"
    inputs = [_documents(tmp_path / "data")]
    assert source_uses(inputs, base=base, look_inside=True) == []
    for path in (tmp_path / "data").iterdir():
        convert(path, base=base)
    (use,) = source_uses(inputs, base=base, look_inside=True)
    assert use.describe() == "docs: 1 of 2 files, 2 documents, 13 B; left out: b.csv (empty)"


def test_source_uses_leave_out_a_file_without_the_column(tmp_path: Path) -> None:
    """A parquet or csv file without it is left out as a jsonl file is whose rows lack the key."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("text\none\ntwo\n")
    (tmp_path / "data" / "b.csv").write_text("body\nthree\n")
    (tmp_path / "data" / "c.jsonl").write_text('{"body": "x"}\n')
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "data" / "d.parquet")
    base = tmp_path / "base"
    for name in ("a.csv", "b.csv"):
        convert(tmp_path / "data" / name, base=base)
    source = SourceSpec(name="docs", path=tuple(str(path) for path in sorted((tmp_path / "data").iterdir())))
    (use,) = source_uses([WeightedSource(source=source, weight=1)], base=base, look_inside=True)
    assert use.describe().endswith("; left out: b.csv, c.jsonl, d.parquet (no usable row)")
    assert use.describe().startswith("docs: 1 of 4 files, 2 documents, ")


def test_source_uses_skip_sources_without_files(tmp_path: Path) -> None:
    builtin = BpbSuiteSpec(source=SourceSpec(name="lib", builtin="python-stdlib"), split="train", tokens=1)
    assert _lines(builtin, _documents(tmp_path / "gone")) == []


def test_source_uses_name_the_form_of_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet files are judged by their columns, others by the first row that is JSON."""
    monkeypatch.chdir(tmp_path)
    row = {"instruction": "q", "input": "", "output": "a"}
    (tmp_path / "a.jsonl").write_text(f"{{broken\n{json.dumps(row)}\n")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "b.parquet")
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    pq.write_table(pa.Table.from_pylist([{"id": 1, "conversations": turns}]), tmp_path / "c.parquet")
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
    pq.write_table(pa.Table.from_pylist([{"messages": parts}]), tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes(b"damaged")
    (tmp_path / "f.csv").write_text("question,answer\nq,a\n")
    (tmp_path / "g.csv").write_text("text\nx\n")
    convert(tmp_path / "f.csv", base=Path("base"))

    def form(name: str, **fields: Any) -> str:
        source = SourceSpec(name="chats", path=(str(tmp_path / name),), **fields)
        item = SftItem(name="c", task="conversations", source=source, split="train", max_examples=None, repeat=1)
        return _lines(item)[0].partition("; ")[2]

    alpaca = "chats: Alpaca (`instruction`, `input`, `output`)"
    assert [form("a.jsonl"), form("b.parquet"), form("e.parquet"), form("g.csv")] == [alpaca, alpaca, "", ""]
    assert form("f.csv") == "chats: question and answer (`question`, `answer`)"
    assert form("c.parquet") == "chats: ShareGPT (`conversations` with `from` and `value`)"
    assert form("d.parquet") == "chats: messages (`messages`, with content parts)"
    (tmp_path / "several").mkdir()
    for name, text in (("a", row), ("b", row), ("c", {"conversations": turns})):
        (tmp_path / f"several/{name}.jsonl").write_text(f"{json.dumps(text)}\n")
    assert form("several") == f"{alpaca} and ShareGPT (`conversations` with `from` and `value`)"
    mapped = (("user", "{instruction}"), ("assistant", "output"))
    assert form("b.parquet", chat_map=mapped) == "chats: mapped from `instruction`, `output`"
