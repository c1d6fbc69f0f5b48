from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import json
import lzma
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

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
            ".xz": lzma.compress,
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


class FakeHub:
    """A hub on a local port: it answers with a listing per revision, and with files and ranges after a redirect.

    Faults happen once per file: `cut` ends the connection after that many bytes, and `corrupt` changes a byte; `broken`
    changes a byte every time. `hold` sends that many bytes, and the rest only after `released`.
    Whoever sends another token than `token` is refused as the real hub does it: a `gated` data set shows its list of
    files but not their contents, and a `private` one does not exist. `parquet_copy` has the files of the branch
    `refs/convert/parquet`; without any there is no such branch.
    """

    page_entries = 1000

    def __init__(self) -> None:
        self.commit = "c0ffee" + "0" * 34
        self.files: dict[str, bytes] = {}
        self.cut: dict[str, int] = {}
        self.hold: dict[str, int] = {}
        self.holding, self.released = threading.Event(), threading.Event()
        self.corrupt: set[str] = set()
        self.broken: set[str] = set()
        self.parquet_copy: dict[str, bytes] = {}
        self.parquet_commit = "f00d" + "0" * 36
        self.token: str | None = None
        self.gated = self.private = False
        self.requests: list[tuple[str, str | None]] = []
        self.authorizations: list[str | None] = []
        self.at_once = threading.Barrier(1)
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            def do_HEAD(self) -> None:
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
        is_known = self.token is None or self.authorizations[-1] == f"Bearer {self.token}"
        if (api := re.fullmatch(r"/api/datasets/(\w+/\w+)/(revision|tree)/(.+)", path)) is not None:
            if api[1] != "some/texts" or (self.private and not is_known):
                self._refuse(request, "RepoNotFound", 404 if self.authorizations[-1] else 401)
            elif api[2] == "revision":
                self._describe(request, api[3])
            else:
                self._list(request, self.parquet_copy if api[3] == self.parquet_commit else self.files)
        elif (file := re.fullmatch(r"/datasets/some/texts/resolve/(\w+)/(.+)", path)) and file[2] in self._all_files():
            self._redirect(request, file[1], file[2], is_known)
        elif (name := path.removeprefix("/cdn/")) in self._all_files():
            self._send_file(request, name, wanted)
        else:
            self._refuse(request, "EntryNotFound")

    def _all_files(self) -> dict[str, bytes]:
        return {**self.parquet_copy, **self.files}

    def _describe(self, request: BaseHTTPRequestHandler, revision: str) -> None:
        if revision in ("main", "v1/a", self.commit):
            commit = self.commit
        elif self.parquet_copy and revision in ("refs/convert/parquet", self.parquet_commit):
            commit = self.parquet_commit
        else:
            self._refuse(request, "RevisionNotFound")
            return
        self._send_json(request, {"id": "some/texts", "sha": commit, "gated": "manual" if self.gated else False})

    def _list(self, request: BaseHTTPRequestHandler, tree: dict[str, bytes]) -> None:
        """Send a page of the tree with its folders; the address of the next page is in the header `Link`."""
        folders = {str(folder) for name in tree for folder in PurePosixPath(name).parents} - {"."}
        entries = [{"type": "directory", "path": folder, "size": 0, "oid": "f" * 40} for folder in sorted(folders)]
        entries += [self._entry(name, tree[name]) for name in sorted(tree)]
        url = urlsplit(request.path)
        start = int(dict(parse_qsl(url.query)).get("cursor", 0))
        stop = start + self.page_entries
        link = {"Link": f'<{self.url}{url.path}?recursive=true&cursor={stop}>; rel="next"'}
        self._send_json(request, entries[start:stop], link if stop < len(entries) else {})

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if name.endswith(".parquet"):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return entry

    def _redirect(self, request: BaseHTTPRequestHandler, commit: str, name: str, is_known: bool) -> None:
        if self.gated and not is_known:
            self._refuse(request, "GatedRepo", 403 if self.authorizations[-1] else 401)
            return
        request.send_response(302)
        entry = self._entry(name, self._all_files()[name])
        digest = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        location = f"{self.url.replace('127.0.0.1', 'localhost')}/cdn/{quote(name)}"  # another host, without the token
        commit = self.commit if commit == "main" else commit
        headers = {"Location": location, "Content-Length": 0, "X-Repo-Commit": commit}
        for key, value in {**headers, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": entry["size"]}.items():
            request.send_header(key, str(value))
        request.end_headers()

    def _send_json(
        self, request: BaseHTTPRequestHandler, answer: object, headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps(answer).encode()
        request.send_response(200)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            request.send_header(key, value)
        request.end_headers()
        request.wfile.write(body)

    def _send_file(self, request: BaseHTTPRequestHandler, name: str, wanted: str | None) -> None:
        content = self._all_files()[name]
        if name in self.corrupt or name in self.broken:
            self.corrupt.discard(name)
            content = bytes([content[0] ^ 1]) + content[1:]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        request.send_response(206 if wanted else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        if request.command == "HEAD":
            return
        self.at_once.wait(timeout=10)
        if name in self.hold:
            held = start + self.hold.pop(name)
            request.wfile.write(content[start:held])
            self.holding.set()
            self.released.wait(timeout=30)
            start = held
        with contextlib.suppress(ConnectionError):  # the client may have been killed
            request.wfile.write(content[start : self.cut.pop(name, len(content))])

    def _refuse(self, request: BaseHTTPRequestHandler, code: str, status: int = 404) -> None:
        request.send_response(status)
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
