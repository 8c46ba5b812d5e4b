"""Signals are remembered and nothing else happens."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ctm_core.runtime import interrupts


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_signal_is_remembered_and_its_handler_restored(number: int) -> None:
    before = {name: signal.getsignal(name) for name in interrupts.SIGNALS}
    noted: list[int] = []
    with interrupts.caught(noted.append):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
    assert noted == [number, number]
    assert {name: signal.getsignal(name) for name in interrupts.SIGNALS} == before


def test_an_exception_restores_handlers_too() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), interrupts.caught(lambda number: None):
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


def test_off_the_main_thread_nothing_changes() -> None:
    seen: list[object] = []

    def embed() -> None:
        with interrupts.caught(lambda number: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=embed)
    thread.start()
    thread.join()
    assert seen == [before]
