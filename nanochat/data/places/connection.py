"""Opens addresses on the network safely, even if the server is malicious.

Redirects and links lead only to `https` addresses, or from `http` to `http`. A token is sent only to the server for
which it is meant. Answers are requested without compression and are never decompressed, so that few bytes cannot
become many. Not here: files, which `transfer` continues and verifies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urljoin, urlsplit

from nanochat import runtime
from nanochat.data.places.attempts import StatusError, TemporaryError
from nanochat.errors import PreflightError

if TYPE_CHECKING:
    from requests import PreparedRequest, Response

_TIMEOUT_SECONDS = (10.0, 30.0)
"""How long to wait for a connection, and for the next bytes of an answer."""
_CHUNK_BYTES = 1 << 16  # a cut connection loses fewer bytes than this
_MAX_REDIRECTS = 10
_HEADERS = {"User-Agent": "nanochat", "Accept-Encoding": "identity"}
_MAX_JSON_BYTES = 1 << 26
_MAX_SIZE_DIGITS = 18
_TRUE_WORDS = ("1", "on", "yes", "true")


@dataclass(frozen=True)
class Place:
    """An address, and the token that its server, and no other, receives."""

    url: str
    token: str | None = None


class Answer:
    """The answer of a server: its headers, and its content as it comes in."""

    def __init__(self, response: Response) -> None:
        self._response = response
        self.is_partial = response.status_code == 206

    @property
    def next_page(self) -> str | None:
        """The address of the next page of a list, or None if this is the last one.

        Raises:
            PreflightError: that address is not valid, or not https.
        """
        link = self._response.links.get("next", {}).get("url")
        return _next_address(self._response.url, self._response.url, link) if link else None

    @property
    def encoding(self) -> str | None:
        """How the content is compressed although that was not requested, or None."""
        encoding = self._response.headers.get("Content-Encoding", "identity").strip().lower()
        return None if encoding in ("", "identity") else encoding

    @property
    def size(self) -> int | None:
        """The announced number of bytes of this answer, or None."""
        return _size(self._response.headers.get("Content-Length", ""))

    @property
    def range(self) -> tuple[int, int | None] | None:
        """The first byte of a partial answer, and the size of the file if it is announced. None for a whole answer."""
        unit, _, rest = self._response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        first = _size(span.partition("-")[0])
        return None if unit != "bytes" or first is None else (first, _size(total))

    def blocks(self) -> Iterator[bytes]:
        """Yield the content in small blocks, as the server sends it.

        Raises:
            TemporaryError: the connection was cut.
        """
        with _network_errors():
            yield from self._response.raw.stream(_CHUNK_BYTES, decode_content=False)


def is_offline() -> bool:
    """Return whether `HF_HUB_OFFLINE` forbids connections."""
    return (runtime.environment("HF_HUB_OFFLINE") or "").lower() in _TRUE_WORDS


@contextmanager
def open_place(
    place: Place, *, first_byte: int = 0, method: Literal["GET", "HEAD"] = "GET", leaves: bool = True
) -> Iterator[Answer]:
    """Yield the answer of the server, after redirects.

    Args:
        place: the address.
        first_byte: the server is asked for the content from this byte on. It may send all of it.
        method: `HEAD` asks for no content.
        leaves: whether redirects to other servers are followed; if not, such a redirect is the answer.

    Raises:
        TemporaryError: there is no answer.
        StatusError: the server refuses. For example, 416 answers a request for bytes after the end of the file.
        PreflightError: the redirects are refused.
    """
    url, is_elsewhere = place.url, False
    for _ in range(_MAX_REDIRECTS):
        token = None if is_elsewhere else place.token  # also if a later redirect leads back
        with _request(url, token, first_byte, method) as response:
            target = _next_address(place.url, url, response.headers["Location"]) if response.is_redirect else None
            is_elsewhere = is_elsewhere or (target is not None and not is_same_server(target, place.url))
            if target is None or (is_elsewhere and not leaves):
                if target is None and response.status_code not in (200, 206):
                    raise StatusError(response.status_code, response.headers, is_elsewhere=is_elsewhere)
                yield Answer(response)
                return
            url = target
    raise PreflightError(f"{place.url}: more than {_MAX_REDIRECTS} redirects; check the address")


def read_json(place: Place) -> tuple[object, str | None]:
    """Return a JSON document, and the address of the next page if there is one.

    Raises:
        TemporaryError: there is no answer.
        StatusError: the server refuses.
        ValueError: the answer is too large or not JSON.
        PreflightError: the redirects are refused.
    """
    content = bytearray()
    with open_place(place) as answer:
        if answer.encoding is not None:
            raise ValueError(f"an answer with the unrequested encoding {answer.encoding!r}")
        for block in answer.blocks():
            content += block
            if len(content) > _MAX_JSON_BYTES:
                raise ValueError(f"an answer of more than {_MAX_JSON_BYTES >> 20} MB")
        next_page = answer.next_page
    try:
        return json.loads(content), next_page
    except RecursionError as error:
        raise ValueError("an answer that is nested too deeply") from error


def is_same_server(url: str, other: str) -> bool:
    """Return whether two addresses have the same scheme, host and port.

    Raises:
        ValueError: an address is not valid.
    """
    return _server(url) == _server(other)


@contextmanager
def _request(url: str, token: str | None, first_byte: int, method: str) -> Iterator[Response]:
    import requests  # here, because planning imports this module, and must be fast

    def authorize(request: PreparedRequest) -> PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    headers = {**_HEADERS, "Range": f"bytes={first_byte}-"} if first_byte else _HEADERS
    with requests.Session() as session:
        # `open_place` follows redirects. The library would read their whole content, which may be endless.
        session.get_redirect_target = lambda resp: None  # type: ignore[method-assign]
        with _network_errors():
            response = session.request(
                method,
                url,
                headers=headers,
                auth=authorize if token else None,  # without a token, requests may use a password from `~/.netrc`
                stream=True,
                allow_redirects=False,
                timeout=_TIMEOUT_SECONDS,
            )
        with response:
            yield response


@contextmanager
def _network_errors() -> Iterator[None]:
    import requests
    import urllib3

    try:
        yield
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise TemporaryError(f"no usable answer ({type(error).__name__})") from error


def _next_address(origin: str, url: str, location: str) -> str:
    """Return the address to which an answer of `url` leads.

    Raises:
        PreflightError: that address is not valid, or not https. The message does not show the whole address, which may
            be a secret.
    """
    try:
        target = urljoin(url, location)
        scheme, _, _ = _server(target)
    except ValueError as error:
        raise PreflightError(f"{origin}: leads to an address that is not valid; refused") from error
    if scheme not in ("https", urlsplit(url).scheme):
        server = f"{scheme}://{urlsplit(target).netloc.rpartition('@')[2]}"
        raise PreflightError(f"{origin}: leads to {ascii(server)[1:-1]}, which is not https; refused")
    return target


def _server(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _size(text: str) -> int | None:
    """Return a number of bytes in a header, or None if the text is not a number."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_SIZE_DIGITS else None
