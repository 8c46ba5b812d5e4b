"""Which images a training step sees: a pure function of (seed, step, sample index).

A step's global batch is cut over processes and micro-batches; no cut changes what is in it. Every
epoch shows each image once, in an order of its own.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from ctm_core.config import Training
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import randomness
from ctm_core.runtime import distributed
from ctm_core.runtime.errors import UserError


@dataclass(eq=False)
class Batch:
    """Consecutive samples of one optimisation step, and every random number they need.

    The run's seed, the step and ``start`` are the whole state of the draws.
    """

    images: Tensor  #: (B, C, H, W), float, in [-1, 1]
    labels: Tensor | None  #: (B,), int64; None for unconditional models
    _: KW_ONLY
    seed: int
    step: int
    start: int = 0  #: index of the first sample within the global batch

    def __len__(self) -> int:
        return len(self.images)

    @property
    def indices(self) -> Tensor:
        """Sample indices within the global batch: shape (B,), int64."""
        return torch.arange(self.start, self.start + len(self))

    def normal(self, stream: str) -> Tensor:
        """Standard normal noise of the images' shape, dtype and device."""
        shape = tuple(self.images.shape[1:])
        noise = randomness.normal(self.seed, stream, self.step, self.start, len(self), shape)
        return noise.to(self.images)

    def uniform(self, stream: str) -> Tensor:
        """One uniform number per sample: shape (B,), float64, CPU."""
        return randomness.uniform(self.seed, stream, self.step, self.start, len(self))

    def shared_uniform(self, stream: str) -> Tensor:
        """One uniform number for the whole global batch: shape (), float64, CPU."""
        return randomness.uniform(self.seed, stream, self.step, 0, 1)[0]


@dataclass(eq=False)
class Batches:
    """Draws the global batch of any step, or this process's part of it.

    Raises UserError if the batch cannot be cut evenly over processes and micro-batches.
    """

    title: str
    dataset: Dataset
    section: Training
    labels: bool  #: whether the network is given labels
    seed: int
    device: torch.device
    flip: bool = True  #: whether half of the images are mirrored, where the data set allows it

    def __post_init__(self) -> None:
        self.micro_batch = _micro_batch(self.section, self.title)
        self._order: tuple[int, Any] = (-1, None)

    @property
    def starts(self) -> range:
        """First samples of this process's micro-batches, within the global batch."""
        # Side by side, so that what one process sees in a micro-batch of 2m samples, two see in
        # theirs of m each: statistics over a micro-batch of all processes are then the same.
        size, stride = self.micro_batch, self.micro_batch * distributed.count()
        return range(distributed.rank() * size, self.section.batch_size, stride)

    def draw(self, step: int, start: int, size: int) -> Batch:
        """Samples start … start + size - 1 of a step's global batch, float32 in [-1, 1]."""
        images, labels = self.dataset.batch(self.indices(step, start, size))
        data = images.to(self.device).float() / 127.5 - 1.0
        if self.flip and self.dataset.flip:
            coin = randomness.uniform(self.seed, "flip", step, start, size) < 0.5
            data = torch.where(coin.to(self.device).view(-1, 1, 1, 1), data.flip(-1), data)
        if self.section.channels_last:
            data = data.contiguous(memory_format=torch.channels_last)
        y = labels.to(self.device) if self.labels else None
        return Batch(data, y, seed=self.seed, step=step, start=start)

    def indices(self, step: int, start: int, size: int) -> list[int]:
        """Places in the data set of those samples."""
        first, count, places = step * self.section.batch_size + start, len(self.dataset), []
        for position in range(first, first + size):
            epoch, place = divmod(position, count)
            if self._order[0] != epoch:
                self._order = (epoch, randomness.permutation(self.seed, "order", epoch, count))
            places.append(int(self._order[1][place]))
        return places


def _micro_batch(section: Training, title: str) -> int:
    processes, whole = distributed.count(), section.batch_size
    if whole % processes:
        raise UserError(
            f"{title}: a batch of {whole} cannot be shared by {processes} processes; "
            "change batch_size or --processes"
        )
    share, size = section.shared(processes)
    if share % size:
        raise UserError(
            f"{title}: micro_batch {size} does not divide the {share} samples of each of "
            f"{processes} processes; change micro_batch or --processes"
        )
    return size
