"""The network: whether the Hugging Face hub answers, and whether this machine is logged in there."""

from __future__ import annotations

import time
from collections.abc import Iterator

from nanochat.data.hub.access import endpoint, read_token
from nanochat.data.places.attempts import StatusError, TemporaryError
from nanochat.data.places.connection import Place, is_offline, open_place
from nanochat.errors import PreflightError
from nanochat.runner.doctor.diagnosis import Diagnosis

_UNREACHABLE = (
    "recipes that download data need it: check the network and HTTPS_PROXY, or use `--offline` with data from"
    " `nanochat-run fetch`; the quickstart needs no network"
)


def examine_network() -> Iterator[Diagnosis]:
    """Yield whether the hub can be reached, unless the user has forbidden connections."""
    address = endpoint()
    if is_offline():
        yield Diagnosis("hub", "not asked: HF_HUB_OFFLINE is set, so only downloaded data are used")
        return
    began = time.perf_counter()
    try:
        with open_place(Place(address, None), method="HEAD", leaves=False):
            pass
    except StatusError as error:
        yield Diagnosis("hub", f"{address} answers with status {error.status}", "warning", _UNREACHABLE)
        return
    except (TemporaryError, PreflightError) as error:
        yield Diagnosis("hub", f"{address} cannot be reached: {error}", "warning", _UNREACHABLE)
        return
    milliseconds = 1000 * (time.perf_counter() - began)
    try:
        login = "logged in" if read_token() else "not logged in, which only private and gated data sets need"
    except PreflightError as error:
        yield Diagnosis("hub", f"{address} answers", "warning", str(error))
        return
    yield Diagnosis("hub", f"{address} answers in {milliseconds:.0f} ms; {login}")
