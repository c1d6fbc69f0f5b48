"""The HTTP application: the OpenAI API under `/v1`, and the chat page at `/`.

Not here: the checks of every request (`request_checks`), the files of the page (`chat_page`), and sockets and signals
(`server`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from nanochat.errors import NanochatError, RecipeError
from nanochat.inference import generation
from nanochat.inference.engine import Engine
from nanochat.serve.answers import stream_answers
from nanochat.serve.chat_page import page, page_file
from nanochat.serve.generator import BusyError, FailedError, Generator
from nanochat.serve.request_checks import check_caller, read_body
from nanochat.serve.requests import ChatRequest, CompletionRequest, Generation
from nanochat.serve.responses import ApiError, Endpoint, Formatter, error_event
from nanochat.tokenizer.chat_format import render_for_completion
from nanochat.tokenizer.pieces import TextError

_REPORT_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "X-Content-Type-Options": "nosniff",
}

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Served:
    """The model that is served, as the page and the list of models show it."""

    name: str
    created: int
    """Unix time."""
    scores: tuple[str, ...]
    report: Path | None
    """The run's report.html, if there is one."""


class Api:
    """The handlers of one server."""

    def __init__(self, generator: Generator, engine: Engine, served: Served, *, key: str | None) -> None:
        """Serve a model.

        Args:
            generator: started.
            engine: the generator's.
            served: its name and scores.
            key: clients must send it as a bearer token; None accepts every request whose Host header is a local name.
        """
        self._generator, self._engine, self._served = generator, engine, served
        self._key = None if key is None else key.strip()  # headers are stripped too

    def application(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/", page),
            Route("/page/{name}", page_file),
            Route("/info", self._guarded(self._info)),
            Route("/report", self._guarded(self._report)),
            Route("/v1/models", self._guarded(self._list_models)),
            Route("/v1/models/{name:path}", self._guarded(self._model)),
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(self._complete), methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_allowed})

    def _guarded(self, handler: Handler) -> Handler:
        """Return a handler that first checks who calls, and turns refusals into responses."""

        async def guarded(request: Request) -> Response:
            try:
                check_caller(request, self._key)
                return await handler(request)
            except (ApiError, BusyError, FailedError, NanochatError) as error:
                return _as_api_error(error).response()

        return guarded

    async def _info(self, _: Request) -> Response:
        config = self._engine.model.config
        return JSONResponse(
            {
                "name": self._served.name,
                "scores": self._served.scores,
                "has_report": self._served.report is not None,
                "context": config.sequence_len,
                "parameters": config.num_parameters(),
            }
        )

    async def _report(self, _: Request) -> Response:
        report = self._served.report
        if report is None or not report.is_file():  # a run that is repeated writes it again
            raise ApiError(404, "this model has no report")
        return HTMLResponse(report.read_text(encoding="utf-8"), headers=_REPORT_HEADERS)

    async def _list_models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_body()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._model_body())

    def _model_body(self) -> dict[str, object]:
        return {"id": self._served.name, "object": "model", "created": self._served.created, "owned_by": "nanochat"}

    async def _chat(self, request: Request) -> Response:
        body = await read_body(request, ChatRequest)
        self._check_model(body.model)
        ids = render_for_completion(self._engine.tokenizer, body.conversation())
        return await self._answer(request, body, ids, "chat")

    async def _complete(self, request: Request) -> Response:
        body = await read_body(request, CompletionRequest)
        self._check_model(body.model)
        tokenizer = self._engine.tokenizer
        return await self._answer(request, body, [tokenizer.bos_id, *tokenizer.encode(body.prompt)], "text")

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._served.name:
            raise ApiError(
                404, f"there is no model {name!r}; this server has `{self._served.name}`", code="model_not_found"
            )

    async def _answer(self, request: Request, body: Generation, ids: list[int], endpoint: Endpoint) -> Response:
        context = self._engine.model.config.sequence_len
        if len(ids) >= context:
            message = f"the prompt has {len(ids):,} tokens, but the model's context is {context:,}: shorten it"
            raise ApiError(400, message, code="context_length_exceeded")
        seed = body.seed if body.seed is not None else int(np.random.SeedSequence().generate_state(1)[0])
        requests = [
            generation.Request(
                prompt=ids, max_tokens=body.token_limit or context, sampling=body.sampling, seed=seed, number=number
            )
            for number in range(body.n)
        ]
        formatter = Formatter(endpoint, self._served.name, len(ids))
        self._generator.check_room()
        if body.stream:
            events = self._stream(requests, body, formatter)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return await self._unless_disconnected(request, self._whole(requests, body, formatter))

    async def _stream(
        self, requests: list[generation.Request], body: Generation, formatter: Formatter
    ) -> AsyncIterator[str]:
        """Yield server-sent events."""
        begun: set[int] = set()
        deltas = stream_answers(self._generator, self._engine.tokenizer, requests, body.stop_strings)
        try:
            async for delta in deltas:
                formatter.completion_tokens += delta.tokens
                if delta.text or delta.ended:
                    yield formatter.chunk(delta, is_first=delta.choice not in begun)
                    begun.add(delta.choice)
            yield formatter.last(with_usage=body.includes_usage)
        except Exception as error:  # noqa: BLE001 -- the status has been sent, so the error becomes an event
            yield error_event(_as_api_error(error))
        finally:
            await deltas.aclose()

    async def _whole(self, requests: list[generation.Request], body: Generation, formatter: Formatter) -> Response:
        texts, ended = [""] * len(requests), dict[int, str | None]()
        async for delta in stream_answers(self._generator, self._engine.tokenizer, requests, body.stop_strings):
            formatter.completion_tokens += delta.tokens
            texts[delta.choice] += delta.text
            ended[delta.choice] = delta.ended
        return JSONResponse(formatter.whole(texts, [ended[number] for number in range(len(texts))]))

    async def _unless_disconnected(self, request: Request, work: Coroutine[None, None, Response]) -> Response:
        """Return the response, or end the work when the client has gone."""
        answer = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_wait_for_disconnect(request))
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=499)  # the client has gone
            return await answer
        finally:
            for task in (answer, gone):
                task.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(503, str(error), headers={"Retry-After": "1"})
    if isinstance(error, (RecipeError, TextError)):
        return ApiError(400, str(error))
    return ApiError(500, f"the answer failed: {error}")


async def _not_found(_: Request, __: Exception) -> Response:
    return ApiError(404, "there is nothing here; the API is under /v1, the chat page is /").response()


async def _not_allowed(_: Request, error: Exception) -> Response:
    return ApiError(405, "this address does not take this method", headers=getattr(error, "headers", None)).response()
