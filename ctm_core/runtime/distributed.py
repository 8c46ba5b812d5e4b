"""Several processes that train one model: who does what, and how they agree.

A process learns its place from the environment that torchrun (or ``ctm train --processes``) sets.
Without it there is one process, and every function here is the identity.

Gradients are averaged explicitly, once an optimiser step and after all micro-batches, as
DistributedDataParallel under ``no_sync`` would. Its hooks do not fit a step that runs the student
several times, pulls gradients back to single layers, and leaves one of two networks out.

=============  ======================================================================
what           who
=============  ======================================================================
lock, files    process 0 alone (:func:`on_main`); its refusal ends every process
draws          every process the same, by sample index: see :mod:`ctm_core.diffusion.randomness`
samples        process r the r-th of each ``count()`` micro-batches of the global batch
decisions      taken on reduced numbers, hence alike everywhere
=============  ======================================================================
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ctm_core.runtime import launch
from ctm_core.runtime.cuda import device
from ctm_core.runtime.errors import Ended, Interrupted, UserError
from ctm_core.runtime.untrusted import printable

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

#: Seconds without an answer after which a process counts as lost (CTM_TIMEOUT overrides).
TIMEOUT = 1800


def count() -> int:
    """Number of processes; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0; known before and after :func:`session` too."""
    if dist.is_initialized():
        return dist.get_rank()
    # Without other processes, a RANK that something left in the environment means nothing.
    return launch.number("RANK", 0) if launch.world_size() > 1 else 0


def main() -> bool:
    """Whether this is process 0, which writes and speaks."""
    return rank() == 0


@contextlib.contextmanager
def session() -> Iterator[torch.device]:
    """Join the other processes, if there are any, and yield this process's device.

    The backend is nccl on GPUs, with gloo for what lives on the CPU, and gloo elsewhere, also
    where processes share a GPU. A process that dies makes the others' next exchange fail at once;
    one that hangs, after ``CTM_TIMEOUT`` seconds. Either ends the job with :class:`Interrupted`:
    the last checkpoint is kept.

    Raises
    ------
    UserError
        If the environment names a place among processes that cannot be, or torch cannot use the
        GPU that is there.
    """
    processes = launch.world_size()
    if processes == 1:
        yield device()
        return
    place = _check_place(processes)
    hint = ""
    if launch.MARK not in os.environ:  # torchrun's place, or one that something else left behind
        hint = f" (unset WORLD_SIZE if there is no other process; the environment has {place})"
        log.info("waiting for %d processes to join (%s)", processes, place)
    local = launch.number("LOCAL_RANK", 0)
    own = device(local)
    cuda = own.type == "cuda"
    if cuda:
        torch.cuda.set_device(own)
    seconds = datetime.timedelta(seconds=_timeout())
    try:
        dist.init_process_group(
            _backend(launch.number("LOCAL_WORLD_SIZE", 1), torch.cuda.device_count(), cuda),
            store=_launchers_store(processes, seconds),
            rank=rank() if launch.MARK in os.environ else -1,
            world_size=processes if launch.MARK in os.environ else -1,
            timeout=seconds,
        )
        if not main():
            logging.getLogger("ctm_core").setLevel(logging.ERROR)  # process 0 speaks for all
        yield own
    except RuntimeError as error:  # which every error of torch.distributed is
        if not _is_loss_of_a_process(error):
            raise
        if not main():
            raise Ended(Interrupted.exit_code) from error
        raise Interrupted(
            f"process {rank()} of {processes} lost another one; the last checkpoint is kept, run "
            f"the same command again to continue{hint}"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _backend(processes: int, gpus: int, cuda: bool) -> str:
    """What processes of one machine talk by; nccl takes one process per GPU."""
    return "cpu:gloo,cuda:nccl" if cuda and processes <= gpus else "gloo"


def _check_place(processes: int) -> str:
    """The variables that name this process's place among several; they must be whole."""
    names = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")
    place = " ".join(f"{name}={printable(os.environ.get(name, ''))}" for name in names)
    if (missing := [name for name in names if not os.environ.get(name)]) or rank() >= processes:
        problem = f"{', '.join(missing)} missing" if missing else "RANK must be below WORLD_SIZE"
        raise UserError(
            f"the environment has {place}, but {problem}; unset WORLD_SIZE to train with one "
            "process, or start several with --processes or torchrun"
        )
    launch.number("MASTER_PORT", 0, least=1)
    return place


def _timeout() -> float:
    text = os.environ.get("CTM_TIMEOUT") or str(TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e9:
        raise UserError(
            f"CTM_TIMEOUT={printable(text)} in the environment is not a positive number of "
            "seconds; correct or unset it"
        )
    return seconds


def _launchers_store(processes: int, timeout: datetime.timedelta) -> Any:
    """Where copies of ``ctm train --processes`` find each other; None under torchrun."""
    if launch.MARK not in os.environ:
        return None
    descriptor = launch.number(launch.STORE, 0) or None
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        processes,
        is_master=descriptor is not None,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=descriptor,
    )


def _is_loss_of_a_process(error: Exception) -> bool:
    # Gloo reports a closed connection as a plain RuntimeError.
    signs = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "gloo")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def on_main(work: Callable[[], ResultT]) -> ResultT | None:
    """Run ``work`` on process 0 and wait for it everywhere; its result there, None elsewhere.

    Raises
    ------
    CtmError
        On process 0 what ``work`` raised; elsewhere :class:`Ended` with the same exit code.
    """
    result: ResultT | None = None
    failure: BaseException | None = None
    if main():
        try:
            result = work()
        except BaseException as error:
            failure = error
    if count() > 1:
        code = [None if failure is None else getattr(failure, "exit_code", 1)]
        dist.broadcast_object_list(code)
        if code[0] is not None and not main():
            raise Ended(int(code[0]))
    if failure is not None:
        raise failure
    return result


def shared(value: ResultT | None) -> ResultT:
    """Process 0's value, on every process."""
    box = [value]
    if count() > 1:
        dist.broadcast_object_list(box)
    received: ResultT = box[0]  # type: ignore[assignment]
    return received


def any_of(flag: int) -> int:
    """The largest of all processes' flags (a signal's number, 0 for none)."""
    if count() == 1:
        return flag
    shared = torch.tensor([flag])
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


@torch.no_grad()
def total(values: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over processes, in place, in few exchanges."""
    if count() == 1 or not values:
        return
    # One exchange for each dtype: a thousand small ones would be all latency. In the order of the
    # values, which is the same on every process; a set's is not.
    for dtype in dict.fromkeys(value.dtype for value in values):
        group = [value for value in values if value.dtype == dtype]
        flat = torch.cat([value.reshape(-1) for value in group])
        dist.all_reduce(flat)
        pieces = torch.split(flat, [value.numel() for value in group])
        for value, piece in zip(group, pieces, strict=True):
            value.copy_(piece.view_as(value))


@torch.no_grad()
def average(values: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over processes, in place."""
    total(values)
    if count() > 1 and values:
        torch._foreach_div_(list(values), count())
