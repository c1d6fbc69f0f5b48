"""A hub on a local port, with one data set: `some/texts`."""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from local_server import LocalServer


class FakeHub(LocalServer):
    """A hub that answers with a listing for each revision, and with files after a redirect to another host.

    Whoever sends another token than `token` is refused as the real hub does it: a `gated` data set shows its list of
    files but not their contents, and a `private` one does not exist. `parquet_copy` has the files of the branch
    `refs/convert/parquet`; without any there is no such branch. `listed` are more entries of the list of files, and
    `changes` replaces parts of the entry of a file. `answers` are the contents of other paths. `next_page` is the
    address of the page after the last one, and `file_host` the address from which files come.
    """

    page_entries = 1000

    def __init__(self) -> None:
        super().__init__()
        self.commit: Any = "c0ffee" + "0" * 34
        self.parquet_copy: dict[str, bytes] = {}
        self.parquet_commit = "f00d" + "0" * 36
        self.token: str | None = None
        self.gated = self.private = False
        self.listed: list[Any] = []
        self.changes: dict[str, dict[str, Any]] = {}
        self.answers: dict[str, bytes] = {}
        self.next_page: str | None = None
        self.file_host = f"{self.url.replace('127.0.0.1', 'localhost')}/cdn"  # another host, without the token

    def answer(self, request: BaseHTTPRequestHandler, path: str, wanted: str | None) -> None:
        is_known = self.token is None or self.authorizations[-1] == f"Bearer {self.token}"
        if path in self.redirects or self.statuses.get(path):
            super().answer(request, path, wanted)
        elif path in self.answers:
            self.send_file(request, path, self.answers[path], wanted)
        elif (api := re.fullmatch(r"/api/datasets/(\w+/\w+)/(revision|tree)/(.+)", path)) is not None:
            if api[1] != "some/texts" or (self.private and not is_known):
                self._refuse(request, "RepoNotFound", 404 if self.authorizations[-1] else 401)
            elif api[2] == "revision":
                self._describe(request, api[3])
            else:
                self._list(request, self.parquet_copy if api[3] == self.parquet_commit else self.files)
        elif (file := re.fullmatch(r"/datasets/some/texts/resolve/(\w+)/(.+)", path)) and file[2] in self._all_files():
            self._redirect(request, file[1], file[2], is_known)
        elif (name := path.removeprefix("/cdn/")) in self._all_files():
            self.send_file(request, name, self._all_files()[name], wanted)
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
        entries: list[Any] = [{"type": "directory", "path": folder, "size": 0, "oid": "f" * 40} for folder in folders]
        entries += [self.entry(name, tree[name]) | self.changes.get(name, {}) for name in sorted(tree)]
        entries += self.listed
        url = urlsplit(request.path)
        start = int(dict(parse_qsl(url.query)).get("cursor", 0))
        stop = start + self.page_entries
        more = f"{self.url}{url.path}?recursive=true&cursor={stop}" if stop < len(entries) else self.next_page
        self._send_json(request, entries[start:stop], {"Link": f'<{more}>; rel="next"'} if more else {})

    def entry(self, name: str, content: bytes) -> dict[str, Any]:
        """Return the entry of a file in the list of files."""
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
        entry = self.entry(name, self._all_files()[name])
        digest = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"Location": f"{self.file_host}/{quote(name)}", "Content-Length": "0"}
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(entry["size"])}
        self.send(request, 302, headers | {"X-Repo-Commit": self.commit if commit == "main" else commit})

    def _send_json(
        self, request: BaseHTTPRequestHandler, answer: object, headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps(answer).encode()
        self.send(request, 200, {**(headers or {}), "Content-Length": str(len(body))}, body)

    def _refuse(self, request: BaseHTTPRequestHandler, code: str, status: int = 404) -> None:
        self.send(request, status, {"X-Error-Code": code, "Content-Length": "0"})
