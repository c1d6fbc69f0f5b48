"""Runs the HTTP server until it is stopped. The answers that are running are finished first."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn

from nanochat.errors import PreflightError, RecipeError
from nanochat.inference.engine import Engine
from nanochat.serve.app import Api, Served
from nanochat.serve.generator import Generator
from nanochat.serve.request_checks import is_loopback

DEFAULT_PORT = 8000
_MAX_WAITING = 256


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the server listens, and the key that it asks for."""

    host: str
    port: int | None
    """None takes the first free port from DEFAULT_PORT."""
    key: str | None

    def check(self) -> None:
        """Raise a RecipeError if others could reach the server without a key."""
        if self.key is None and not is_loopback(self.host):
            raise RecipeError(
                f"--host {self.host} lets other machines use the model: set a key in NANOCHAT_SERVE_KEY, which clients "
                "send as `Authorization: Bearer KEY`"
            )
        if self.key is not None and (not self.key.strip() or not self.key.isascii()):
            raise RecipeError("NANOCHAT_SERVE_KEY is empty or not ASCII: clients could not send it")


def serve(
    load: Callable[[], Engine], served: Served, address: Address, *, max_rows: int, announce: Callable[[str], None]
) -> None:
    """Load a model, announce the server's URL, and answer until SIGINT or SIGTERM; a second signal ends it at once.

    Raises:
        PreflightError: the address cannot be listened on.
        Exception: what ended the generator. Its clients have received it.
    """
    address.check()
    listener = _listen(address)
    generator = Generator(load, max_rows=max_rows, max_waiting=_MAX_WAITING)
    try:
        engine = generator.start()
        app = Api(generator, engine, served, key=address.key).application()
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", server_header=False)
        host, port = listener.getsockname()[:2]
        server = _Server(config)
        generator.on_failure = lambda: setattr(server, "should_exit", True)
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        server.run(sockets=[listener])
        if generator.failure is not None:
            raise generator.failure
    finally:
        listener.close()
        generator.close()


class _Server(uvicorn.Server):
    """Ends at once at the second signal of any kind, of which uvicorn would ignore SIGTERM."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            logging.getLogger("uvicorn.error").disabled = True  # it would log every answer that is cut
        super().handle_exit(sig, frame)


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    ports = [address.port] if address.port is not None else range(DEFAULT_PORT, DEFAULT_PORT + 20)
    problem: OSError | ValueError | None = None
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, port))
            listener.listen()  # from here on the port is taken, while the model is loaded
        except (OSError, ValueError) as error:  # a ValueError if the host is not a name
            listener.close()
            problem = error
        else:
            return listener
    raise PreflightError(f"cannot listen on {address.host} port {ports[0]}: {problem}; give another one with --port")
