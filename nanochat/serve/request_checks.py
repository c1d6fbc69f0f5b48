"""Checks every request before it reaches the model: its sender, the size of its body, and its fields."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import secrets
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from nanochat.serve.requests import ChatRequest, CompletionRequest
from nanochat.serve.responses import ApiError

MAX_BODY_BYTES = 2**20
BODY_SECONDS = 30
"""A client that sends its request more slowly is refused. A server that shuts down waits for it too."""
Body = TypeVar("Body", ChatRequest, CompletionRequest)


def check_caller(request: Request, key: str | None) -> None:
    """Raise ApiError unless a request has the key or, if there is none, asks for this machine by a local name."""
    if key is not None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), key.encode()):
            raise ApiError(401, "give the server's key as `Authorization: Bearer KEY`", code="invalid_api_key")
        return
    host = re.sub(r":\d+$", "", request.headers.get("host", ""))
    # Another site's name may point to this machine (DNS rebinding), but no site has a loopback address.
    if not is_loopback(host.removeprefix("[").removesuffix("]")):
        raise ApiError(403, f"this server is called 127.0.0.1 or localhost, not {host!r}")


def is_loopback(host: str) -> bool:
    """Return whether a name or an address always means this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def read_body(request: Request, schema: type[Body]) -> Body:
    """Return the body of a request. Raises ApiError if it is too large, too slow, no JSON, or against the schema."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Browsers send this type from another site only after a CORS preflight, which this server refuses.
    if kind != "application/json":
        raise ApiError(415, "send JSON, with `Content-Type: application/json`")
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for block in request.stream():
                content += block
                if len(content) > MAX_BODY_BYTES:
                    raise ApiError(413, f"the request is larger than {MAX_BODY_BYTES:,} bytes")
    except TimeoutError:
        raise ApiError(408, f"the request was not sent within {BODY_SECONDS} seconds") from None
    except ClientDisconnect:
        raise ApiError(400, "the client disconnected") from None
    try:
        return schema.model_validate(json.loads(content))
    except ValidationError as error:
        raise ApiError(400, _explain(error)) from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None


def _explain(error: ValidationError) -> str:
    """Return the problems of a body, as `messages.0.role: ...`."""
    problems = []
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"])
        reason = str(problem["msg"]).removeprefix("Value error, ")
        problems.append(f"{where}: {reason}" if where else reason)
    return "; ".join(problems[:5])
