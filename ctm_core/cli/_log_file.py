"""``ctm --log FILE``: everything that is printed goes to a file, and from there to the terminal.

The file takes the place of this process's standard output and error, so whatever is written to
them is in it at once: by Python, by C libraries up to the message of a crash, and by processes
that are started. A thread copies what the file gains to the terminal. So no pipe is held open, no
further process is needed, and a process that is killed leaves a complete log.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.launch import is_secondary

__all__ = ["end_log", "log_to"]

#: Seconds between looks at the file.
POLL = 0.1
CHUNK = 1 << 16

_endings: list[Callable[[], None]] = []


def log_to(path: Path) -> None:
    """Print to ``path`` from now on, and copy what it gains to standard error until the exit.

    A process that already prints there, such as one of several started by the command, changes
    nothing. Missing parent folders are made; an existing file is replaced.

    Raises
    ------
    UserError
        If ``path`` is a pipe or a device, which cannot be read back.
    OSError
        If it cannot be written.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"--log {path}: expected a regular file")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Append, since processes that open it for themselves (under torchrun) must not overwrite.
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    if os.path.samestat(os.fstat(log), os.fstat(1)):
        os.close(log)
        return
    if not is_secondary():
        os.ftruncate(log, 0)
    terminal, ended = os.dup(2), threading.Event()
    copied = os.open(path, os.O_RDONLY)
    copying = threading.Thread(target=_copy, args=(copied, terminal, ended), daemon=True)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    copying.start()

    def end() -> None:
        ended.set()
        copying.join()
        os.dup2(terminal, 1)
        os.dup2(terminal, 2)

    _endings.append(end)
    atexit.register(end_log)


def end_log() -> None:
    """Copy the rest of the log to the terminal, and print there alone from now on."""
    while _endings:
        _endings.pop()()


def _copy(log: int, terminal: int, ended: threading.Event) -> None:
    # Signals are for the main thread, which may have to be woken by them.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    last = False
    with contextlib.suppress(OSError):  # without its terminal a job goes on
        while not last:
            last = ended.wait(POLL)
            while chunk := os.read(log, CHUNK):
                while chunk:
                    chunk = chunk[os.write(terminal, chunk) :]
