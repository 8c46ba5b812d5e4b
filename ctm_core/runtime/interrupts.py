"""Signals that end a training early: remembered at once, acted upon where it is safe.

A cluster sends SIGUSR1 some minutes before a time limit and SIGTERM when a job is cancelled;
Ctrl-C sends SIGINT. Nothing happens inside the handler, so no write is ever cut by one.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextlib.contextmanager
def caught(remember: Callable[[int], None]) -> Iterator[None]:
    """Call ``remember`` with the number of each of `SIGNALS` instead of its usual handler.

    Outside the main thread, where Python lets nobody handle signals, nothing changes: a caller
    that embeds a training in a thread handles them itself.
    """

    def handle(number: int, frame: object) -> None:
        remember(number)

    try:
        old = {number: signal.signal(number, handle) for number in SIGNALS}
    except ValueError:
        old = {}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
