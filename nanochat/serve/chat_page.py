"""Sends the chat page and its files to browsers. Its headers forbid the page to load anything from another server.

Not here: what the page asks the server for (`app`).
"""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from nanochat.serve.responses import ApiError

_FILES = {"page.css": "text/css", "page.js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


async def page(_: Request) -> Response:
    """Return the page."""
    return HTMLResponse(_read("index.html"), headers=_HEADERS)


async def page_file(request: Request) -> Response:
    """Return a style sheet or a script of the page."""
    name = request.path_params["name"]
    if name not in _FILES:
        return ApiError(404, "there is no such file").response()
    return Response(_read(name), media_type=_FILES[name], headers=_HEADERS)


def _read(name: str) -> str:
    return files("nanochat.serve").joinpath("page", name).read_text(encoding="utf-8")
