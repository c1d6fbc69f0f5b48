from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from server_fixtures import _no_pauses, certificate, fake_hub, web  # noqa: F401  (fixtures)

from nanochat.data.sources.source_spec import SourceSpec


class ByteTokenizer:
    """Encodes a text as its bytes plus 10; BOS is 1."""

    bos_id = 1

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + 10 for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(int(i) - 10 for i in ids if i >= 10).decode()


@pytest.fixture(scope="session")
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


def zstd(content: bytes) -> bytes:
    """Return a file of two zstd frames, as tools write that compress in parallel."""
    half = len(content) // 2
    return b"".join(pa.compress(part, codec="zstd", asbytes=True) for part in (content[:half], content[half:]))


class Files:
    """Writes small data files and makes sources of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def parquet(
        self, name: str, texts: Sequence[Any], *, row_group_size: int | None = None, column: str = "text"
    ) -> Path:
        path = self._path(name)
        pq.write_table(pa.table({column: texts}), path, row_group_size=row_group_size)
        return path

    def jsonl(self, name: str, rows: Iterable[object]) -> Path:
        path = self._path(name)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def text(self, name: str, content: str | bytes) -> Path:
        path = self._path(name)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def compressed(self, name: str, content: str | bytes) -> Path:
        """Write a text, compressed as the name's suffix says."""
        write: dict[str, Callable[[bytes], bytes]] = {
            ".gz": gzip.compress,
            ".bz2": bz2.compress,
            ".xz": partial(lzma.compress, preset=0),  # the others prepare for megabytes
            ".zst": zstd,
        }
        return self.text(
            name, write.get(Path(name).suffix, bytes)(content if isinstance(content, bytes) else content.encode())
        )

    def source(self, *patterns: str, **settings: Any) -> SourceSpec:
        return SourceSpec(name="mine", path=tuple(str(self.folder / name) for name in patterns), **settings)

    def _path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    folder = tmp_path / "files"
    folder.mkdir()
    return Files(folder)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "base"
