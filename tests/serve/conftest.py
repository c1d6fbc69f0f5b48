"""A running server with a small random model, and a client for it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn

from nanochat.inference.engine import Engine
from nanochat.serve.app import Api, Served
from nanochat.serve.generator import Generator

MODEL = "small"


@dataclass
class Server:
    """A server that runs in threads of this process."""

    url: str
    generator: Generator
    engine: Engine

    def post(self, path: str, body: Any, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=60, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **options)


@pytest.fixture
def start_server(model_folder: Path) -> Iterator[Callable[..., Server]]:
    """A function that starts a server; all are stopped at the end."""
    with ExitStack() as running:

        def start(*, key: str | None = None, max_rows: int = 8, max_waiting: int = 64, **served: Any) -> Server:
            def load() -> Engine:
                from nanochat.checkpoint.model_folder import load_model, load_tokenizer

                return Engine(load_model(model_folder), load_tokenizer(model_folder))

            generator = Generator(load, max_rows=max_rows, max_waiting=max_waiting)
            engine = generator.start()
            running.callback(generator.close)
            facts: dict[str, Any] = {"name": MODEL, "created": 1, "scores": ("bpb 1.5",), "report": None} | served
            app = Api(generator, engine, Served(**facts), key=key).application()
            listener = socket.create_server(("127.0.0.1", 0))
            running.callback(listener.close)
            server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join()

            running.callback(stop)
            return Server(f"http://127.0.0.1:{listener.getsockname()[1]}", generator, engine)

        yield start


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    return start_server()
