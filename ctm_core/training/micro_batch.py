"""How many samples at once memory allows: what ``micro_batch: auto`` means, once per run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ctm_core.config import Training
from ctm_core.data.dataset import Dataset
from ctm_core.runtime import cuda, distributed, memory
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_record, write_record
from ctm_core.training import acceleration
from ctm_core.training.batches import Batch, Batches
from ctm_core.training.objective import Objective

log = logging.getLogger(__name__)

#: Part of the free memory that activations may take; kernels need room too.
PART = 0.5
#: In the run folder: a run goes on with what it began with.
FILE = "micro_batch.json"


def recorded(run: Path) -> dict[str, int]:
    """What the record of a run says of it: nothing unless it was chosen."""
    if not (run / FILE).exists():
        return {}
    size = read_record(run / FILE).get("micro_batch")
    if not isinstance(size, int) or size < 1:
        raise UserError(f"{run / FILE} is corrupt: expected a number of samples but got {size!r}")
    return {"micro_batch": size}


def of_run(
    run: Path, objective: Objective, dataset: Dataset, section: Training, labels: bool, seed: int
) -> int:
    """The micro-batch of a run: chosen when it begins, then kept in its folder."""
    if not (run / FILE).exists():
        whole = section.model_copy(update={"micro_batch": None})
        device = objective.student.output_weight.device
        group = objective.group
        batches = Batches("micro_batch", dataset, whole, labels, seed, device, group=group)
        objective.student.train()
        with acceleration.autocast(section, device):
            size = choose(objective, lambda n: batches.draw(0, 0, n), batches.micro_batch)
        write_record(run / FILE, {"micro_batch": size})
    return recorded(run)["micro_batch"]


def choose(objective: Objective, draw: Callable[[int], Batch], share: int) -> int:
    """The largest divisor of ``share`` whose activations fit, by those of one sample.

    On a GPU it is tried, and a smaller one taken where memory runs out after all. Gradients and
    counts of evaluations are left as they were before.

    Parameters
    ----------
    draw
        A batch of some size, on the device, under whatever precision the training has.
    share
        Samples of a step that this process has.
    """
    device = objective.student.output_weight.device
    processes = 1 if device.type == "cuda" else distributed.count()
    room = PART * memory.available(device) / processes
    group = objective.group
    each = _activation_bytes(objective, draw(group)) / group
    whole = (n for n in range(share, 0, -group) if share % n == 0)
    sizes = [n for n in whole if n == group or n * each <= room]
    size: int | None = sizes[0]
    if device.type == "cuda":
        size = cuda.largest_fitting(sizes, lambda n: _try(objective, draw(n)))
    if size is None:
        raise UserError(
            f"micro_batch: auto finds no room for a single sample ({each / 1e9:.1f} GB of "
            "activations); free memory of the device, or set recompute to true"
        )
    log.info("micro_batch: auto is %d of %d samples", size, share)
    return size


def too_large(title: str, batches: Batches, attempt: Callable[[int], None]) -> UserError:
    """What to say of a micro-batch that does not fit; ``attempt`` tries smaller ones."""
    size, largest = batches.micro_batch, None
    if distributed.count() == 1:
        group = batches.group
        smaller = (n for n in range(size - group, 0, -group) if size % n == 0)
        largest = cuda.largest_fitting(smaller, attempt)
    remedy = f"set `micro_batch: {largest}` in its training section, which fits"
    if largest is None:
        remedy = "set a smaller `micro_batch` in its training section, or use a larger card"
    room = cuda.room(batches.device)
    return UserError(f"{title}: a micro-batch of {size} does not fit into {room}; {remedy}")


def _activation_bytes(objective: Objective, batch: Batch) -> int:
    """Bytes that autograd keeps for the backward passes of a batch."""
    kept = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if isinstance(x, nn.Parameter) else x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        _try(objective, batch)
    return kept


def _try(objective: Objective, batch: Batch) -> None:
    before = dict(objective.evaluations)
    try:
        objective.backward(batch, 1.0)
    finally:
        objective.evaluations.update(before)
        for module in (objective.student, *objective.modules.values()):
            module.zero_grad(set_to_none=True)
