"""Local servers for the tests of downloads, and attempts without pauses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub
from local_server import LocalServer, make_certificate

from nanochat.data.places import attempts


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_PAUSE_SECONDS", 0.0001)


@pytest.fixture
def fake_hub(_no_pauses: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one data set, which the environment names."""
    hub = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine."""
    return make_certificate(tmp_path_factory.mktemp("tls") / "certificate.pem")


@pytest.fixture
def web(_no_pauses: None, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """A server of files by https."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    server = LocalServer(certificate)
    yield server
    server.close()
