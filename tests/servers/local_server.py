"""A server of files on a local port, by http or https, which misbehaves as a test asks."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class LocalServer:
    """Serves `files` by their names: the paths of their addresses. With a certificate it speaks https.

    Some faults happen once for a file: `cut` ends the connection after that many bytes, `corrupt` changes a byte, and
    `hold` sends that many bytes, and the rest only after `released`. Others happen every time: `broken` changes a byte,
    `endless` never ends the file or the redirect, and `headers` replaces headers, or removes them with None.
    `redirects` and `statuses` (in turn) are the answers for other paths. Without `has_ranges`, each answer begins with
    the first byte; without `has_length`, no size is announced. Files are sent once `at_once` requests have come in.
    """

    def __init__(self, certificate: Path | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.statuses: dict[str, list[int]] = {}
        self.cut: dict[str, int] = {}
        self.hold: dict[str, int] = {}
        self.holding, self.released = threading.Event(), threading.Event()
        self.corrupt: set[str] = set()
        self.broken: set[str] = set()
        self.endless: set[str] = set()
        self.headers: dict[str, dict[str, str | None]] = {}
        self.has_ranges = self.has_length = True
        self.at_once = threading.Barrier(1)
        self.requests: list[tuple[str, str | None]] = []
        self.authorizations: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError, ssl.SSLError):  # the client may have closed the connection
                    path, wanted = unquote(urlsplit(self.path).path), self.headers.get("Range")
                    server.requests.append((path, wanted))
                    server.authorizations.append(self.headers.get("Authorization"))
                    server.answer(self, path, wanted)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler, path: str, wanted: str | None) -> None:
        """Answer a request for a path, perhaps from a byte on (`bytes=N-`)."""
        if path in self.redirects:
            self.send(request, 302, {"Location": self.redirects[path]})
            self._send_more(request, path)
        elif self.statuses.get(path):
            self.send(request, self.statuses[path].pop(0), {"Content-Length": "0"})
        elif path in self.files:
            self.send_file(request, path, self.files[path], wanted)
        else:
            self.send(request, 404, {"Content-Length": "0"})

    def send_file(self, request: BaseHTTPRequestHandler, name: str, content: bytes, wanted: str | None) -> None:
        """Send the content of a file with its faults."""
        if name in self.corrupt or name in self.broken:
            self.corrupt.discard(name)
            content = bytes([content[0] ^ 1]) + content[1:]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.has_ranges else 0
        headers: dict[str, str | None] = {"Content-Length": str(len(content) - start)} if self.has_length else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers |= self.headers.get(name, {})
        self.send(request, 206 if start else 200, {key: text for key, text in headers.items() if text is not None})
        if request.command == "HEAD":
            return
        self.at_once.wait(timeout=10)
        if name in self.hold:
            held = start + self.hold.pop(name)
            request.wfile.write(content[start:held])
            self.holding.set()
            self.released.wait(timeout=30)
            start = held
        request.wfile.write(content[start : self.cut.pop(name, None)])
        self._send_more(request, name)

    def _send_more(self, request: BaseHTTPRequestHandler, name: str) -> None:
        while name in self.endless:
            request.wfile.write(bytes(1 << 16))

    def send(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        request.send_response(status)
        for key, text in headers.items():
            request.send_header(key, text)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


def make_certificate(path: Path) -> Path:
    """Write a certificate for this machine, with its key, and return its path."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    signed = builder.not_valid_before(now - day).not_valid_after(now + day).add_extension(address, critical=False)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path
