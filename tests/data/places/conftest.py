from __future__ import annotations

import contextlib
import datetime
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nanochat.data.places import https


class WebServer:
    """A server of files by https on a local port.

    `redirects` and `statuses` are the answers for other paths. `cut` ends the first answer for a file after that many
    bytes. Without `has_ranges`, every answer begins with the file's first byte; without `has_length`, its size is
    unknown.
    """

    def __init__(self, certificate: str) -> None:
        self.certificate = certificate
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.statuses: dict[str, list[int]] = {}
        self.cut: dict[str, int] = {}
        self.has_ranges = self.has_length = True
        self.requests: list[tuple[str, str | None]] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError, ssl.SSLError):  # the client may have closed the connection
                    web.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._server.daemon_threads = True
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, wanted = unquote(urlsplit(request.path).path), request.headers.get("Range")
        self.requests.append((path, wanted))
        if path in self.redirects:
            self._send(request, 302, {"Location": self.redirects[path], "Content-Length": "0"})
        elif self.statuses.get(path):
            self._send(request, self.statuses[path].pop(0), {"Content-Length": "0"})
        elif path in self.files:
            self._send_file(request, self.files[path], wanted, self.cut.pop(path, None))
        else:
            self._send(request, 404, {"Content-Length": "0"})

    def _send_file(self, request: BaseHTTPRequestHandler, content: bytes, wanted: str | None, cut: int | None) -> None:
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.has_ranges else 0
        headers = {"Content-Length": str(len(content) - start)} if self.has_length else {}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(request, 206 if start else 200, headers, content[start:cut])

    def _send(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a certificate for this machine, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    signed = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return str(path)


@pytest.fixture
def web(certificate: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
    monkeypatch.setattr(https, "_PAUSE_SECONDS", 0.0001)
    server = WebServer(certificate)
    yield server
    server.close()
