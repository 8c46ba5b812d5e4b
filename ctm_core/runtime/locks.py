"""One writer per folder, on however many machines share it.

A folder is held by whoever wrote its ``owner.json``::

    {"process": 123, "started": "…", "host": "node7", "machine": "…", "slurm_job": "42", …}

and touches it every :data:`BEAT` seconds. ``lock`` next to it is held by ``flock`` as well, which
the kernel releases with the process; but some file systems have no such locks between machines, so
that alone proves nothing. Whether an owner that left its file behind is dead is judged, in this
order, by

1. its process, on its own machine (boot and process namespace; host names can be shared),
2. its Slurm job: an earlier start of this process's own job is over once that was requeued, and,
   if Slurm answers, a job that ended has no processes,
3. its heartbeat: a file that was not touched for :data:`STALE` seconds, by a clock that may be
   another's, and is not while it is watched for :data:`WATCH` seconds.

A dead owner's file is moved away by a rename, which succeeds for one contender alone, and the new
one is created exclusively. An owner that was wrongly taken for dead (stopped, or cut off) sees
another name in the file at its next beat or before its next checkpoint, and ends.

filelock's ``SoftFileLease`` judges an owner by process and heartbeat as well, but cannot ask
Slurm: a suspended job would be taken over, a requeued one would wait for its own lease to expire,
and the file could not name the job to cancel.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import IO, Any

from ctm_core.runtime import slurm
from ctm_core.runtime.errors import Interrupted, Missing, UserError
from ctm_core.runtime.files import lock
from ctm_core.runtime.untrusted import parse_json, read_bytes

log = logging.getLogger(__name__)

#: Seconds between heartbeats, after how many without one an owner may be dead, and for how many
#: it is then watched.
BEAT, STALE, WATCH = 15.0, 150.0, 40.0


class Lock:
    """Exclusive use of a folder.

    Parameters
    ----------
    folder
        It must exist; ``lock`` and ``owner.json`` are kept in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "owner.json"
        self._flock: IO[str] | None = None
        self._mine = b""
        self._end = threading.Event()
        self._beats: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the folder, at once or after watching an owner that seems dead.

        Raises
        ------
        Interrupted
            If another owner lives; the sentence names it, and what to do.
        """
        file = open(self.folder / "lock", "a", encoding="utf-8")  # noqa: SIM115 - held until release
        try:
            # A dead machine's lock may outlive it on a server; a living one's is only released.
            if not lock(file) and self._owner().get("machine") in (None, _machine()):
                raise self._in_use()
            self._take()
        except BaseException:
            file.close()
            raise
        self._flock = file
        self._beats = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._beats.start()

    def release(self) -> None:
        """Give the folder free; nothing if it is not held."""
        self._end.set()
        if self._beats is not None:
            self._beats.join()
            self._beats = None
        if self._mine and _read(self.path)[0] == self._mine:
            self.path.unlink(missing_ok=True)
        self._mine = b""
        if self._flock is not None:
            self._flock.close()
            self._flock = None

    def confirm(self) -> None:
        """Check that the folder is still held by this process.

        Raises
        ------
        Interrupted
            If another process took it over, believing this one dead.
        """
        if not self._is_mine():
            raise Interrupted(
                f"{self.folder} was taken over by {_name(self._owner())} while this process stood "
                "still; it stops and leaves the folder as it is"
            )

    def _owner(self) -> dict[str, Any]:
        return _read(self.path)[1]

    # -- taking --------------------------------------------------------------------------------

    def _take(self) -> None:
        content, owner = _read(self.path)
        if content or self.path.exists():
            reason = self._death(owner)
            if reason is None:
                raise self._in_use()
            self._remove(content)
            # After a kill on this machine there is no doubt, and nothing to report.
            level = logging.DEBUG if owner.get("machine") == _machine() else logging.INFO
            log.log(level, "%s: taken over from %s, %s", self.folder, _name(owner), reason)
        mine = json.dumps(_identity(), indent=1).encode()
        try:
            file = open(self.path, "xb")  # noqa: SIM115 - what follows must tell two errors apart
        except FileExistsError:
            raise self._in_use() from None
        try:
            with file:
                file.write(mine)
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # a full disk
            self.path.unlink(missing_ok=True)
            raise
        self._mine = mine

    def _remove(self, dead: bytes) -> None:
        """Move a dead owner's file away, unless another contender was faster."""
        aside = self.folder / f".owner-{uuid.uuid4().hex}"
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            raise self._in_use() from None
        try:
            if aside.read_bytes() != dead:  # a faster contender's
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
                raise self._in_use()
        finally:
            aside.unlink()

    def _in_use(self) -> Interrupted:
        owner = self._owner()
        where = "" if owner.get("machine") == _machine() else f" on {owner.get('host')}"
        how = f"kill {owner.get('process')}{where}" if owner else "kill"
        job = owner.get("slurm_job")
        # This process may stand in the same allocation, which is not to be cancelled for it.
        if job is not None and job != slurm.current_job():
            how = f"scancel {str(job).partition('@')[0]}; or end this process alone: {how}"
        return Interrupted(
            f"{self.folder} is in use by {_name(owner)}; wait for it or stop it ({how}; it writes "
            "a checkpoint first), then run again"
        )

    # -- judging -------------------------------------------------------------------------------

    def _death(self, owner: dict[str, Any]) -> str | None:
        """Why an owner is dead; None: it lives."""
        if owner.get("machine") == _machine() and isinstance(owner.get("process"), int):
            here = _started(owner["process"]) == owner.get("started")
            return None if here else "whose process has ended"
        job = owner.get("slurm_job")
        if job is not None and job == slurm.current_job():
            if _is_earlier_start(owner):
                return "an earlier start of this Slurm job"
        elif job is not None:
            lives = slurm.lives(str(job))
            if lives is not None:
                return None if lives else "whose Slurm job has ended"
        return self._silence()

    def _silence(self) -> str | None:
        """That there was no heartbeat for long, nor is while watching."""
        then = _touched(self.path)
        if then is None:
            return None
        age = time.time() - then
        if -STALE < age < STALE:
            return None
        log.info("%s: watching whether its owner still lives (%.0f s)", self.folder, WATCH)
        deadline = time.monotonic() + WATCH
        while time.monotonic() < deadline:
            time.sleep(min(1.0, WATCH / 10))
            if _touched(self.path) != then:
                return None
        return f"which was last heard from {max(0.0, time.time() - then):.0f} s ago"

    # -- holding -------------------------------------------------------------------------------

    def _is_mine(self) -> bool:
        for _ in range(5):
            content, _ = _read(self.path)
            if content:
                return content == self._mine
            # Absent for the moment in which a mistaken contender puts it back.
            time.sleep(0.2)
        return False

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            try:
                if not self._is_mine():
                    # Ends a training at its next micro-batch, where `confirm` says why.
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                os.utime(self.path)
            except OSError:  # the file system is away; it will be back, or another takes over
                log.debug("no heartbeat", exc_info=True)


def _identity() -> dict[str, Any]:
    """What tells this process from every other."""
    return {
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "host": socket.gethostname(),
        "machine": _machine(),
        "slurm_job": slurm.current_job(),
        "slurm_restarts": slurm.restarts(),
        "token": uuid.uuid4().hex,
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _machine() -> str:
    """This boot of this machine, as far as process numbers mean the same in it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


def _is_earlier_start(owner: dict[str, Any]) -> bool:
    """Whether an owner in this process's Slurm job began before that was requeued."""
    before = owner.get("slurm_restarts")
    if isinstance(before, int) and before < slurm.restarts():
        return True
    # A job of one node has no processes elsewhere; a container on it has the same boot.
    boot = str(owner.get("machine")).partition(" ")[0]
    return slurm.nodes() == 1 and boot != _machine().partition(" ")[0]


def _started(process: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None: it has ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    """An owner's file, raw and parsed; empty where it is missing or not written yet."""
    try:
        content = read_bytes(path)
    except Missing:  # whatever is there by now
        return b"", {}
    try:
        owner = parse_json(content, path)
    except UserError:
        owner = None
    return content, owner if isinstance(owner, dict) else {}


def _touched(path: Path) -> float | None:
    """When a file was touched; it is opened, since shared file systems then look anew."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return "an unknown process"
    job = owner.get("slurm_job")
    text = f"process {owner.get('process')} on {owner.get('host')}"
    return text + (f" (Slurm job {str(job).partition('@')[0]})" if job else "")
