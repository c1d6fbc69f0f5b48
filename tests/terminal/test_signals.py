"""Handlers of signals leave alone what is ignored."""

from __future__ import annotations

import signal

import pytest

from nanochat.terminal.signals import STOP_SIGNALS, handle_signals


@pytest.fixture(autouse=True)
def _restore():
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def handler(_number, _frame):
        pass

    previous = handle_signals((signal.SIGHUP, signal.SIGTERM), handler)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is handler
    assert previous == {signal.SIGTERM: signal.SIG_DFL}
