"""The server takes its port before the model is loaded, and ends with the error that ended the generator."""

from __future__ import annotations

import logging
import signal
import socket
import threading

import pytest
import requests
import uvicorn

from nanochat.errors import PreflightError, StageError
from nanochat.inference.engine import Batch, Engine
from nanochat.serve.app import Served
from nanochat.serve.server import Address, _Server, serve

SERVED = Served("small", 1, (), None)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_port_is_taken_while_the_model_is_loaded():
    """A second server cannot bind it, and the first one does not fail after it has loaded its model."""
    port = free_port()

    def load() -> Engine:
        with pytest.raises(OSError, match="in use"), socket.socket() as second:
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            second.bind(("127.0.0.1", port))
            second.listen()
        raise StageError("loaded")

    with pytest.raises(StageError, match="loaded"):
        serve(load, SERVED, Address(host="127.0.0.1", port=port, key=None), max_rows=1, announce=print)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".invalid", "1.2.3.4.5.6", ":::"])
def test_host_that_is_none_is_refused(host):
    with pytest.raises(PreflightError, match="cannot listen on"):
        serve(lambda: pytest.fail("loads"), SERVED, Address(host=host, port=1, key="k"), max_rows=1, announce=print)


def test_server_ends_with_the_error_that_ended_the_generator(model_folder, monkeypatch):
    def load() -> Engine:
        from nanochat.checkpoint.model_folder import load_model, load_tokenizer

        return Engine(load_model(model_folder), load_tokenizer(model_folder))

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    statuses = []
    client = threading.Thread()

    def announce(url: str) -> None:
        nonlocal client
        ask = lambda: statuses.append(requests.post(f"{url}v1/completions", json={"prompt": "a"}, timeout=60))  # noqa: E731
        client = threading.Thread(target=ask)
        client.start()

    monkeypatch.setattr(Batch, "step", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        serve(load, SERVED, Address(host="127.0.0.1", port=free_port(), key=None), max_rows=1, announce=announce)
    client.join()
    assert [response.status_code for response in statuses] == [500]


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_ends_the_server_silently(sig, monkeypatch):
    """The first one lets the running answers finish."""
    monkeypatch.setattr(logging.getLogger("uvicorn.error"), "disabled", False)
    running = _Server(uvicorn.Config(lambda: None))
    running.handle_exit(sig, None)
    assert (running.should_exit, running.force_exit) == (True, False)
    running.handle_exit(sig, None)
    assert running.force_exit
    assert logging.getLogger("uvicorn.error").disabled
