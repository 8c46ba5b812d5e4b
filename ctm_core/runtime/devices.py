"""What a job computes on: a GPU of its own, and whether its device has instructions for bf16.

Batch systems assign GPUs to a job that they start. Snakemake alone only counts them
(``--resources gpu=4``), on a workstation as well as inside an allocation (``salloc``), so there
every job picks free ones by locking one file per GPU. The locks end with the process, however it
ends. The workflow names their folder by :data:`LOCKS` in the jobs that it starts itself; without
it, nothing is taken, and two commands started by hand may share a GPU as before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ctm_core.runtime import cuda, launch, slurm
from ctm_core.runtime.errors import UserError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

#: Environment variable with the folder of the locks, on this machine's own disk.
LOCKS = "CTM_DEVICE_LOCKS"
#: The Slurm job inside which the workflow itself runs and starts its jobs; empty outside Slurm.
WORKFLOW_JOB = "CTM_WORKFLOW_JOB"
#: The GPUs that a job may see; narrowed to those it has taken.
VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Seconds between attempts.
POLL = 0.5
#: A processor's flags for products of bf16 numbers, the faster first.
BF16_FLAGS = ("amx_bf16", "avx512_bf16")
#: Locks of this process, held until it ends.
_held: list[contextlib.ExitStack] = []


def claim(count: int) -> None:
    """Take free GPUs for this process and its copies, and wait for them if there are none.

    To be called before CUDA is first used. Does nothing in a Slurm job of its own, in a copy,
    where :data:`LOCKS` is not set, or where the machine has no GPUs.

    Parameters
    ----------
    count
        How many; all of them if there are fewer.

    Raises
    ------
    UserError
        If there are none, or the folder of the locks is not this user's alone.
    """
    cuda.check_present(count, os.environ.get(VISIBLE))
    folder = os.environ.get(LOCKS)
    if not folder or count < 1 or launch.MARK in os.environ:
        return
    if (slurm.job_number() or "") != os.environ.get(WORKFLOW_JOB, ""):
        return  # Slurm started this job, and gave it devices
    devices = _devices()
    wanted = min(count, len(devices))
    if not wanted:
        return
    place = Path(folder)
    _make_private(place)
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


def _make_private(place: Path) -> None:
    """A folder of this user alone: another's locks could be held for ever, or lead elsewhere."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        place.mkdir(mode=0o700)
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise UserError(
            f"{place} ({LOCKS}) is not a folder of yours, so the locks of the GPUs cannot be kept "
            "there; remove it, or set TMPDIR to a folder of your own"
        )
    if stat.S_IMODE(status.st_mode) != 0o700:
        place.chmod(0o700)


def _devices() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA takes."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def _take(place: Path, devices: list[str], wanted: int) -> list[str]:
    """All that is wanted, locked; or nothing."""
    from ctm_core.runtime.files import lock  # here, so that `ctm --help` need not load it

    taken = []
    with contextlib.ExitStack() as files:
        for name in devices:
            path = place / f"{name.replace('/', '_')}.lock"
            # No link is followed, and a pipe is not waited for.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            if lock(files.enter_context(os.fdopen(os.open(path, flags, 0o600), "rb"))):
                taken.append(name)
            if len(taken) == wanted:
                _held.append(files.pop_all())
                return taken
    return []


def bf16_units(device: torch.device | str = "cpu") -> str | None:
    """What computes bf16 natively on a device: a flag of its processor, or the GPU itself."""
    import torch

    if torch.device(device).type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_name(device) if native else None
    with contextlib.suppress(OSError):
        return bf16_flag(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return None


def bf16_flag(cpuinfo: str) -> str | None:
    """The fastest of :data:`BF16_FLAGS` that ``/proc/cpuinfo``, as text, lists; None: none."""
    flags = {
        flag
        for line in cpuinfo.splitlines()
        if line.startswith("flags")
        for flag in line.split(":", 1)[-1].split()
    }
    return next((flag for flag in BF16_FLAGS if flag in flags), None)


def native_precision(device: torch.device | str = "cpu") -> str:
    """What `precision: auto` means: bf16 where the device computes in it natively, else fp32."""
    return "fp32" if bf16_units(device) is None else "bf16"
