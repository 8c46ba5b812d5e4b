"""A GPU of its own for each job of one machine without a batch system.

Batch systems assign GPUs to a job. Snakemake alone only counts them (``--resources gpu=4``), so
there every job picks free ones by locking one file per GPU. The locks end with the process,
however it ends. The workflow names their folder by :data:`LOCKS`; without it, nothing is
taken, and two commands started by hand may share a GPU as before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import IO

from ctm_core.runtime import launch, slurm
from ctm_core.runtime.files import lock

__all__ = ["LOCKS", "claim"]

log = logging.getLogger(__name__)

#: Environment variable with the folder of the locks, on this machine's own disk.
LOCKS = "CTM_DEVICE_LOCKS"
#: The GPUs that a job may see; narrowed to those it has taken.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Seconds between attempts.
POLL = 0.5
#: Locks of this process, held until it ends.
_held: list[contextlib.ExitStack] = []


def claim(count: int) -> None:
    """Take free GPUs for this process and its copies, and wait for them if there are none.

    To be called before CUDA is first used. Does nothing in a Slurm job, in a copy, where
    :data:`LOCKS` is not set, or where the machine has no GPUs.

    Parameters
    ----------
    count
        How many; all of them if there are fewer.
    """
    folder = os.environ.get(LOCKS)
    if not folder or count < 1 or slurm.current_job() or launch.MARK in os.environ:
        return
    devices = _devices()
    wanted = min(count, len(devices))
    if not wanted:
        return
    # Each user has a folder: a file of another's could not be locked.
    place = Path(folder)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    waiting = False
    while True:
        taken = _take(place, devices, wanted)
        if taken:
            os.environ[VISIBLE] = ",".join(taken)
            return
        if not waiting:
            log.info("waiting for %d free of %d GPUs", wanted, len(devices))
            waiting = True
        time.sleep(POLL)


def _devices() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA takes."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _take(place: Path, devices: list[str], wanted: int) -> list[str]:
    """All that is wanted, locked; or nothing."""
    taken = []
    with contextlib.ExitStack() as files:
        for name in devices:
            file: IO[str] = open(place / f"{name.replace('/', '_')}.lock", "a")  # noqa: SIM115
            files.enter_context(file)
            if lock(file):
                taken.append(name)
            if len(taken) == wanted:
                _held.append(files.pop_all())
                return taken
    return []
