from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.sources import SourceSpec


class ByteTokenizer:
    """A text's bytes plus 10; BOS is 1."""

    bos_id = 1

    def encode_batch(self, texts):
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + 10 for text in texts]

    def decode(self, ids):
        return bytes(int(i) - 10 for i in ids if i >= 10).decode()


@pytest.fixture(scope="session")
def byte_tokenizer():
    return ByteTokenizer()


class Files:
    """Writes small data files and names sources of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def parquet(self, name, texts, *, row_group_size=None, column="text"):
        path = self._path(name)
        pq.write_table(pa.table({column: texts}), path, row_group_size=row_group_size)
        return path

    def jsonl(self, name, rows):
        path = self._path(name)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def text(self, name, content):
        path = self._path(name)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def source(self, *patterns, **settings):
        found = tuple(str(self.folder / pattern) for pattern in patterns)
        return SourceSpec(name="mine", path=found, **settings)

    def _path(self, name):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return Files(folder)


@pytest.fixture
def base(tmp_path):
    return tmp_path / "base"
