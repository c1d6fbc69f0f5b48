"""One text in many forms gives the same documents, the same tokenizer and the same weights."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from functools import partial

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from nanochat.data.documents import single_pass
from nanochat.data.ingest.convert import convert
from nanochat.data.ingest.pending import files_to_convert
from nanochat.data.sources.source_spec import SourceSpec
from nanochat.model.config import GPTConfig
from nanochat.optim.groups import OptimizerConfig
from nanochat.optim.schedules import ScheduleConfig
from nanochat.plan.specs.inputs import WeightedSource
from nanochat.plan.specs.training import PretrainSpec, TokenizerSpec
from nanochat.stages import pretrain, tokenizer

STEPS = 6
TEXTS = [
    "\n".join(f'line {j} of "document" {i}, é: the value\tis {(i * 37 + j * 11) % 100}' for j in range(3 + i % 5))
    for i in range(30)
]
TEXT_FORMS = ["txt", "md", "py", "txt.gz", "md.xz"]
ROW_FORMS = ["jsonl", "ndjson", "parquet", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "ndjson.xz"]
CONVERTED_FORMS = ["csv", "tsv", "json", "arrow", "feather", "csv.gz", "json.zst", "tsv.xz", "arrow.bz2"]
TRAINED_FORMS = ["plain", "txt.gz", "jsonl", "parquet", "csv", "arrow.bz2"]  # with one of each kind of reader
COMPRESS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": partial(lzma.compress, preset=0)}
COMPRESS["zst"] = lambda content: pa.compress(content, codec="zstd", asbytes=True)


def rows_as(form):
    """Return the content of a file of rows in a form."""
    table, buffer = pa.table({"text": TEXTS, "number": list(range(len(TEXTS)))}), io.BytesIO()
    match form:
        case "jsonl" | "ndjson":
            return "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
        case "json":
            return json.dumps(table.to_pylist(), indent=1).encode()
        case "parquet":
            pq.write_table(table, buffer, row_group_size=7)
        case "feather":
            feather.write_feather(table, buffer)
        case "arrow":
            with pa.ipc.new_stream(buffer, table.schema) as writer:
                writer.write_table(table)
        case "csv" | "tsv":
            text = io.StringIO()
            csv.writer(text, delimiter="\t" if form == "tsv" else ",").writerows(
                [table.column_names, *zip(*table.to_pydict().values(), strict=True)]
            )
            return text.getvalue().encode()
    return buffer.getvalue()


def write(folder, form):
    """Write the texts in a form: a file for each text, or a file of rows."""
    kind, _, suffix = form.partition(".")
    contents = [text.encode() for text in TEXTS] if kind in ("txt", "md", "py") else [rows_as(kind)]
    folder.mkdir()
    for number, content in enumerate(contents):
        (folder / f"{number:02d}.{form}").write_bytes(COMPRESS.get(suffix, bytes)(content))
    return SourceSpec(name="texts", path=(str(folder),), validation_hash_frac=0.2)


def read(source, make_context, name):
    """Return the documents, the tokenizer file and, for some forms, the weights after a few steps."""
    spec = TokenizerSpec(source=source, vocab_size=300, max_chars=100_000, max_document_chars=10_000, seed=1)
    first = make_context(spec, name=f"{name}-tokenizer")
    tokenizer.run(first.job, first)
    base = first.out.parents[1] / "base"
    documents = [list(single_pass(source, split, base=base)) for split in ("train", "validation")]
    weights = train(source, make_context, name, first) if name in TRAINED_FORMS else None
    return documents, (first.out / "tokenizer.model").read_bytes(), weights


def train(source, make_context, name, first):
    """Return the weights after a few steps of pretraining, which reads the documents in a different order."""
    spec = PretrainSpec(
        model=GPTConfig(
            sequence_len=16, vocab_size=300, n_layer=1, n_head=2, n_kv_head=1, n_embd=32, window_pattern="L"
        ),
        data=(WeightedSource(source=source, weight=1.0),),
        steps=STEPS,
        tokens_per_step=4 * 16,
        optimizer=OptimizerConfig(lr_scale=2.0),
        schedule=ScheduleConfig(steps=STEPS, warmup_steps=2, warmdown_steps=4),
        weight_decay=0.1,
        buffer_documents=8,
        long_documents="keep",
        init_from=None,
        seed=3,
    )
    second = make_context(spec, name=f"{name}-pretrain", upstream={"tokenizer": str(first.out)}, micro_batch_size=4)
    pretrain.run(second.job, second)
    return (second.out / "model/model.safetensors").read_bytes()


@pytest.fixture
def expected(make_context, tmp_path):
    return read(write(tmp_path / "plain", "txt"), make_context, "plain")


def test_one_text_in_many_forms_gives_the_same_documents_tokenizer_and_weights(make_context, tmp_path, expected):
    assert sorted([*expected[0][0], *expected[0][1]]) == sorted(TEXTS)
    for form in [*TEXT_FORMS[1:], *ROW_FORMS, *CONVERTED_FORMS]:
        source = write(tmp_path / form, form)
        paths = files_to_convert(source, base=tmp_path / "base")
        assert len(paths) == (form in CONVERTED_FORMS)
        for path in paths:
            convert(path, base=tmp_path / "base")
        found = read(source, make_context, form)
        assert found[:2] == expected[:2], form
        assert found[2] in (expected[2], None), form
