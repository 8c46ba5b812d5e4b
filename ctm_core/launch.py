"""Several processes of one command on one machine, through torch's elastic workers.

``ctm train --processes N`` starts N copies of itself with the environment that torchrun gives, and
ends as they end: with process 0's exit code, and with process 0's sentence, since only that one
speaks. Signals are handed on, so a batch system's warning reaches every process. If a process dies
of something else (kill -9, memory), the others are stopped and the command says which one died;
if this one dies, the copies notice and stop with a checkpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from subprocess import Popen
from typing import Any

from ctm_core.errors import CtmError, Interrupted

__all__ = ["follow_parent", "launched"]

#: Set in the copies: they do not start copies of their own.
MARK = "CTM_LAUNCHED"
#: Handed on to every process; a terminal sends SIGINT to all of them by itself.
HANDED_ON = (signal.SIGTERM, signal.SIGUSR1)
#: Seconds between looks at the processes, and until the others have to end after the first.
POLL, GRACE = 0.05, 30.0


class _Ended(CtmError):
    """The processes have ended and said why."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


def launched(processes: int) -> bool:
    """Run this very command in ``processes`` copies, unless it is one of them.

    Returns
    -------
    True once they have all succeeded; False in a copy, under torchrun, or for one process: the
    caller then does the work itself.

    Raises
    ------
    CtmError
        With the exit code of the copies, if they did not succeed.
    """
    if processes <= 1 or MARK in os.environ or "WORLD_SIZE" in os.environ:
        return False
    with _workers(processes) as workers:
        _wait(workers)
        codes = [worker.poll() for worker in workers]
    if not any(codes):
        return True
    # What process 0 chose to end with; else what another did; else somebody killed one.
    chosen = [code for code in codes if code is not None and code > 0]
    if codes[0] in chosen:
        raise _Ended(chosen[0])
    killed = next((i for i, code in enumerate(codes) if code is None or code < 0), 0)
    raise Interrupted(
        f"process {killed} of {processes} was killed; the last checkpoint stands, run the same "
        "command again to continue"
    )


@contextlib.contextmanager
def _workers(processes: int) -> Iterator[list[Popen[Any]]]:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
    from torch.distributed.elastic.multiprocessing.api import SubprocessContext

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        MARK: str(os.getpid()),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    with tempfile.TemporaryDirectory(prefix="ctm-") as logs, _signals() as receivers:
        context = start_processes(
            name="ctm",
            entrypoint=sys.executable,
            args={i: ("-m", "ctm_core.cli", *sys.argv[1:]) for i in range(processes)},
            envs={
                i: {**os.environ, **common, "RANK": str(i), "LOCAL_RANK": str(i)}
                for i in range(processes)
            },
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        assert isinstance(context, SubprocessContext)
        workers = [context.subprocess_handlers[i].proc for i in range(processes)]
        receivers += workers
        try:
            yield workers
        finally:
            context.close(death_sig=signal.SIGTERM, timeout=10)


def _wait(workers: list[Popen[Any]]) -> None:
    """Until all have ended, or one has failed and the others had time to end by themselves."""
    failed = None
    while any(worker.poll() is None for worker in workers):
        time.sleep(POLL)
        if failed is None and any(worker.poll() for worker in workers):
            failed = time.monotonic()
        if failed is not None and time.monotonic() - failed > GRACE:
            return


@contextlib.contextmanager
def _signals() -> Iterator[list[Popen[Any]]]:
    receivers: list[Popen[Any]] = []

    def hand_on(number: int, frame: object) -> None:
        for receiver in receivers:
            if receiver.poll() is None:
                receiver.send_signal(number)

    old = {number: signal.signal(number, hand_on) for number in HANDED_ON}
    # A handler of ours that does nothing, not SIG_IGN, which the copies would inherit.
    old[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        yield receivers
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def follow_parent() -> None:
    """In a copy: receive SIGTERM when the command that started it dies (Linux)."""
    parent = os.environ.get(MARK)
    if parent is None or not sys.platform.startswith("linux"):
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))
    if os.getppid() != int(parent):  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
