"""Several processes of one command on one machine.

``ctm train --processes N`` starts N copies of itself with the environment that torchrun sets, and
ends with the exit code of process 0, which alone prints messages. Signals are forwarded, so a
batch system's warning reaches every process. If a process is killed (kill -9, out of memory), the
others are stopped and the command says which one died; if this one dies, the copies notice and
stop with a checkpoint.

torch's own launcher is not used here: it ends its workers at the first signal, which leaves them
little time for a checkpoint, and reports every failure as 1. The command works under it as well.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Protocol

from ctm_core.runtime import interrupts
from ctm_core.runtime.errors import CtmError, Diverged, Ended, Interrupted, UserError
from ctm_core.runtime.untrusted import printable

#: Set in the copies, to the number of the process that started them; they start none.
MARK = "CTM_LAUNCHED"
#: Set by torchrun.
TORCHRUN = "TORCHELASTIC_RUN_ID"
#: File descriptor, in process 0, of the socket at which it listens for the others.
STORE = "CTM_STORE"
#: Seconds between looks at the processes.
POLL = 0.05
#: Seconds that the others have, after one has failed, to end by themselves, then after SIGTERM.
GRACE, LAST_GRACE = 10.0, 5.0
AGAIN = "the last checkpoint is kept, run the same command again to continue"


def number(name: str, default: int, least: int = 0) -> int:
    """A whole number from the environment; ``default`` where it is unset or empty.

    Raises
    ------
    UserError
        If it is something else; the sentence names the variable.
    """
    text = os.environ.get(name) or str(default)
    if not (text.isdecimal() and int(text) >= least):
        raise UserError(
            f"{name}={printable(text)} in the environment is not a whole number from {least} "
            f"upwards; unset or correct {name}"
        )
    return int(text)


def world_size() -> int:
    """How many processes train together, as the environment says; 1 without torchrun."""
    return number("WORLD_SIZE", 1, least=1)


def is_secondary() -> bool:
    """Whether a launcher started this process beside a first one, which speaks for all.

    Variables that were merely left in the environment silence nobody.
    """
    started = MARK in os.environ or TORCHRUN in os.environ
    return started and os.environ.get("LOCAL_RANK", "0") != "0"


class Worker(Protocol):
    """What is needed of ``subprocess.Popen``."""

    pid: int

    def poll(self) -> int | None: ...
    def send_signal(self, number: int, /) -> None: ...


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
    if processes <= 1 or MARK in os.environ or world_size() > 1:
        return False
    workers: list[Worker] = []
    received: list[int] = []

    def forward(number: int) -> None:
        received.append(number)
        # A terminal's SIGINT has reached them already; a second one changes nothing.
        _send(workers, number)

    with interrupts.caught(forward):
        try:
            # Listening from here on: a port that is merely known to be free may be taken.
            with socket.create_server(("127.0.0.1", 0)) as server:
                for rank in range(processes):
                    environment = _environment(rank, processes, server)
                    workers.append(start(environment, server.fileno()))
            for number in received:  # while they were being started
                _send(workers, number)
            _wait(workers)
            codes = [worker.poll() for worker in workers]
        finally:
            _end(workers)
    if any(code != 0 for code in codes):
        raise _verdict(codes, received)
    return True


def _environment(rank: int, processes: int, server: socket.socket) -> dict[str, str]:
    address, port = server.getsockname()
    given = {
        MARK: str(os.getpid()),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    return given | ({STORE: str(server.fileno())} if rank == 0 else {})


def start(environment: Mapping[str, str], descriptor: int) -> Worker:
    """Start a copy with some environment variables and, if it is process 0, the socket."""
    return subprocess.Popen(
        [sys.executable, "-m", "ctm_core.cli", *sys.argv[1:]],
        env={**os.environ, **environment},
        pass_fds=(descriptor,) if STORE in environment else (),
    )


def _verdict(codes: list[int | None], received: list[int]) -> CtmError:
    """How the command ends if not all processes ended well (None: it had to be ended)."""
    # What process 0 chose to end with, then what another chose; 75 may be but a consequence.
    for i, code in enumerate(codes):
        if code is None or code <= 0 or code == Interrupted.exit_code:
            continue
        if code in (UserError.exit_code, Diverged.exit_code):
            return Ended(code)
        if not received:
            what = f"process {i} of {len(codes)} failed with exit code {code}, as it says above"
            return Ended(code, f"{what}; the last checkpoint is kept")
    if received:
        if codes[0] == Interrupted.exit_code:
            return Ended(Interrupted.exit_code)
        return Interrupted(f"stopped by {signal.Signals(received[0]).name}; {AGAIN}")
    for i, code in enumerate(codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return Interrupted(f"process {i} of {len(codes)} was killed by {name}; {AGAIN}")
    if codes[0] == Interrupted.exit_code:
        return Ended(Interrupted.exit_code)
    return Interrupted(f"one of {len(codes)} processes stopped; {AGAIN}")


def _wait(workers: list[Worker], grace: float | None = None) -> None:
    """Until all have ended, or one has failed and the others had time to end by themselves."""
    deadline = None if grace is None else time.monotonic() + grace
    while any(worker.poll() is None for worker in workers):
        time.sleep(POLL)
        if deadline is None and any(worker.poll() for worker in workers):
            deadline = time.monotonic() + GRACE
        if deadline is not None and time.monotonic() > deadline:
            return


def _end(workers: list[Worker]) -> None:
    """End those that are still there; nothing is lost, since files are whole or absent."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        _send(workers, number)
        _wait(workers, LAST_GRACE)


def _send(workers: list[Worker], number: int) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)


def follow_parent() -> None:
    """In a copy, or under torchrun: receive SIGTERM when what started it dies."""
    parent = number(MARK, 0)
    if not parent and TORCHRUN not in os.environ:
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))
    if parent and os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)
