"""The bodies of the OpenAI API's responses: whole, streamed, and errors."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from starlette.responses import JSONResponse

from nanochat.serve.answers import Delta

JsonObject = dict[str, object]
Endpoint = Literal["chat", "text"]


class ApiError(Exception):
    """A request that is refused, with its HTTP status."""

    def __init__(self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers

    def body(self) -> JsonObject:
        """Return the error as JSON."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def response(self) -> JSONResponse:
        """Return the response with this error."""
        return JSONResponse(self.body(), self.status, headers=self.headers)


@dataclass
class Formatter:
    """Formats the answers to one request.

    A piece of an answer has the extra field `kind`: `text`, `python` for code that the model runs, or `python_output`.
    """

    endpoint: Endpoint
    model: str
    prompt_tokens: int
    completion_tokens: int = 0
    """The tokens of all answers so far."""
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def whole(self, texts: Sequence[str], ended: Sequence[str | None]) -> JsonObject:
        """Return the body of a response that is not streamed."""
        choices = [
            self._choice(number, {"message": {"role": "assistant", "content": text}}, text, reason)
            for number, (text, reason) in enumerate(zip(texts, ended, strict=True))
        ]
        kind = "chat.completion" if self.endpoint == "chat" else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self._usage()}

    def chunk(self, delta: Delta, *, is_first: bool) -> str:
        """Return a server-sent event with some more of an answer."""
        role: JsonObject = {"role": "assistant"} if is_first else {}
        content: JsonObject = {"content": delta.text, "kind": delta.kind} if delta.text or is_first else {}
        choice = self._choice(delta.choice, {"delta": role | content}, delta.text, delta.ended)
        return _event({**self._head(self._chunk_kind), "choices": [choice]})

    def last(self, *, with_usage: bool) -> str:
        """Return the last events of a stream."""
        usage = _event({**self._head(self._chunk_kind), "choices": [], "usage": self._usage()})
        return (usage if with_usage else "") + "data: [DONE]\n\n"

    def _usage(self) -> JsonObject:
        counts = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {**counts, "total_tokens": sum(counts.values())}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.endpoint == "chat" else "text_completion"

    def _choice(self, number: int, of_chat: JsonObject, text: str, ended: str | None) -> JsonObject:
        content = of_chat if self.endpoint == "chat" else {"text": text}
        return {"index": number, **content, "logprobs": None, "finish_reason": ended}

    def _head(self, kind: str) -> JsonObject:
        prefix = "chatcmpl" if self.endpoint == "chat" else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


def error_event(error: ApiError) -> str:
    """Return a server-sent event for an error in the middle of a stream."""
    return _event(error.body())


def _event(body: Mapping[str, object]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
