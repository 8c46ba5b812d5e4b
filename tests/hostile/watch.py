"""What must never happen while a foreign file is read: events of running code, and hanging."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: What happens in an interpreter when a file has got the better of it (PEP 578).
FORBIDDEN = (
    "os.",
    "subprocess.",
    "shutil.",
    "socket.",
    "ctypes.",
    "webbrowser.",
    "pickle.find_class",
    "marshal.",
    "exec",
    "compile",
    "code.__new__",
    "function.__new__",
)
ALLOWED = {"os.listdir", "os.scandir", "os.fspath", "os.putenv"}


class Watch:
    """Notes the audit events of everything that runs while it is on; a hook stays for ever."""

    def __init__(self) -> None:
        self._on = False
        self.events: list[tuple[str, Any]] = []
        sys.addaudithook(self._note)

    @contextmanager
    def __call__(self, seconds: int) -> Iterator[None]:
        """Fail if what runs meanwhile takes longer; note what it does."""

        def late(signum: int, frame: object) -> None:
            raise TimeoutError(f"not done within {seconds} s")

        self.events.clear()
        previous = signal.signal(signal.SIGALRM, late)
        signal.alarm(seconds)
        self._on = True
        try:
            yield
        finally:
            self._on = False
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)

    def _note(self, event: str, arguments: Any) -> None:
        if not self._on or event in ALLOWED:
            return
        writes = (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if writes or (event.startswith(FORBIDDEN) and not _importing()):
            self.events.append((event, arguments))


def _importing() -> bool:
    """Whether Python is loading a module of its own, such as a codec, for the first time."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
