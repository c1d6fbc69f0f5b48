from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.sources import SourceSpec


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


class FakeHub:
    """A hub on a local port: it answers with a listing per revision, and with files and ranges after a redirect.

    Faults happen once per file: `cut` ends the connection after that many bytes, and `corrupt` changes a byte; `broken`
    changes a byte every time. `hold` sends that many bytes, and the rest only after `released`.
    """

    def __init__(self) -> None:
        self.commit = "c0ffee" + "0" * 34
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.hold: dict[str, int] = {}
        self.holding, self.released = threading.Event(), threading.Event()
        self.corrupt: set[str] = set()
        self.broken: set[str] = set()
        self.requests: list[tuple[str, str | None]] = []
        self.authorizations: list[str | None] = []
        self.at_once = threading.Barrier(1)
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        wanted = request.headers.get("Range")
        self.requests.append((path, wanted))
        self.authorizations.append(request.headers.get("Authorization"))
        listing = re.fullmatch(r"/api/datasets/(\w+/\w+)/revision/(.+)", path)
        if listing is not None:
            self._list(request, *listing.groups())
        elif (name := path.removeprefix(f"/datasets/some/texts/resolve/{self.commit}/")) in self.files:
            request.send_response(302)
            request.send_header("Location", f"/cdn/{name}")
            request.end_headers()
        elif (name := path.removeprefix("/cdn/")) in self.files:
            self._send_file(request, name, wanted)
        else:
            self._refuse(request, "EntryNotFound")

    def _list(self, request: BaseHTTPRequestHandler, repository: str, revision: str) -> None:
        if repository != "some/texts":
            self._refuse(request, "RepoNotFound")
            return
        if revision not in ("main", "v1/a", self.commit):
            self._refuse(request, "RevisionNotFound")
            return
        body = json.dumps({"sha": self.commit, "siblings": [self._entry(name) for name in sorted(self.files)]}).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def _entry(self, name: str) -> dict[str, object]:
        content = self.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
        if name.endswith(".parquet"):
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def _send_file(self, request: BaseHTTPRequestHandler, name: str, wanted: str | None) -> None:
        content = self.files[name]
        if name in self.corrupt or name in self.broken:
            self.corrupt.discard(name)
            content = bytes([content[0] ^ 1]) + content[1:]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        request.send_response(206 if wanted else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        self.at_once.wait(timeout=10)
        if name in self.hold:
            held = start + self.hold.pop(name)
            request.wfile.write(content[start:held])
            self.holding.set()
            self.released.wait(timeout=30)
            start = held
        with contextlib.suppress(ConnectionError):  # the client may have been killed
            request.wfile.write(content[start : self.cut.pop(name, len(content))])

    def _refuse(self, request: BaseHTTPRequestHandler, code: str) -> None:
        request.send_response(404)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", "0")
        request.end_headers()


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield hub
    hub.close()
