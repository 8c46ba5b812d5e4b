"""Which images a training step sees: a pure function of (seed, step, sample index).

A step's global batch is cut over processes and micro-batches; no cut changes what is in it. Every
epoch shows each image once, in an order of its own.

A thread draws the next micro-batch while one is in use: images, and the random numbers that were
asked of earlier ones. As every draw is a function of its name, drawing ahead changes no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ctm_core.config import Training
from ctm_core.data.dataset import Dataset
from ctm_core.diffusion import randomness
from ctm_core.runtime import distributed
from ctm_core.runtime.errors import UserError
from ctm_core.training.rows import send

#: A kind of random numbers and the name of their stream.
Stream = tuple[Literal["normal", "uniform", "shared"], str]


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
    whole: int | None = None  #: samples of the global batch; None: there are no others
    #: Numbers drawn so far, on the CPU: ahead, or when they were asked for.
    drawn: dict[Stream, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def indices(self) -> Tensor:
        """Sample indices within the global batch: shape (B,), int64."""
        return torch.arange(self.start, self.start + len(self))

    @property
    def global_size(self) -> int:
        """Samples of the global batch."""
        return len(self) if self.whole is None else self.whole

    @property
    def images_seen(self) -> int:
        """Samples of all earlier steps."""
        return self.step * self.global_size

    def normal(self, stream: str) -> Tensor:
        """Standard normal noise of the images' shape, dtype and device."""
        return self._numbers("normal", stream).to(self.images, non_blocking=True)

    def uniform(self, stream: str) -> Tensor:
        """One uniform number per sample: shape (B,), float64, CPU."""
        return self._numbers("uniform", stream)

    def shared_uniform(self, stream: str) -> Tensor:
        """One uniform number for the whole global batch: shape (), float64, CPU."""
        return self._numbers("shared", stream)

    def group_uniform(self, stream: str, size: int) -> Tensor:
        """One uniform number per ``size`` consecutive samples of the global batch, like
        :meth:`uniform`: the batch holds whole groups."""
        place = (self.seed, stream, self.step, self.start // size, len(self) // size)
        return randomness.uniform(*place).repeat_interleave(size)

    def _numbers(self, kind: Literal["normal", "uniform", "shared"], stream: str) -> Tensor:
        if (kind, stream) not in self.drawn:
            shape, place = tuple(self.images.shape), (self.seed, self.step, self.start)
            self.drawn[kind, stream] = _draw((kind, stream), place, shape)
        return self.drawn[kind, stream]


def _draw(stream: Stream, place: tuple[int, int, int], shape: tuple[int, ...]) -> Tensor:
    """Numbers for images of a shape (B, C, H, W), at a seed, step and first sample."""
    (kind, name), (seed, step, start), (count, *image) = stream, place, shape
    if kind == "shared":
        return randomness.uniform(seed, name, step, 0, 1)[0]
    if kind == "uniform":
        return randomness.uniform(seed, name, step, start, count)
    return randomness.normal(seed, name, step, start, count, tuple(image))


class _Drawn(NamedTuple):
    """What a batch is made of, on the CPU: in pinned memory, if it goes to a GPU."""

    images: Tensor
    labels: Tensor
    coins: Tensor | None
    numbers: dict[Stream, Tensor]


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
    period: int = 1  #: steps after which the same random numbers are asked for
    group: int = 1  #: consecutive samples that no cut may part

    def __post_init__(self) -> None:
        self.micro_batch = _micro_batch(self.section, self.title, self.group)
        self._order: tuple[int, Any] = (-1, None)
        self._thread = ThreadPoolExecutor(1, "batches")
        self._ahead: dict[tuple[int, int], Future[_Drawn]] = {}
        #: What batches were asked for last, by the step's place in the period.
        self._streams: dict[int, Mapping[Stream, object]] = {}

    def close(self) -> None:
        """Draw no more, and wait for the thread to end."""
        self._thread.shutdown(cancel_futures=True)

    @property
    def starts(self) -> range:
        """First samples of this process's micro-batches, within the global batch."""
        # Side by side, so that what one process sees in a micro-batch of 2m samples, two see in
        # theirs of m each: statistics over a micro-batch of all processes are then the same.
        size, stride = self.micro_batch, self.micro_batch * distributed.count()
        return range(distributed.rank() * size, self.section.batch_size, stride)

    def next(self, step: int, start: int) -> Batch:
        """This process's micro-batch at ``start``; the one after it is drawn from now on."""
        # Their names alone: the numbers of earlier batches are let go.
        self._streams = {place: dict.fromkeys(drawn) for place, drawn in self._streams.items()}
        drawn = self._begin(step, start).result()
        del self._ahead[step, start]
        later = start + self.starts.step
        self._begin(*((step, later) if later in self.starts else (step + 1, self.starts[0])))
        batch = self._sent(drawn, step, start)
        self._streams[step % self.period] = batch.drawn
        return batch

    def _begin(self, step: int, start: int) -> Future[_Drawn]:
        if (step, start) not in self._ahead:
            streams = [*self._streams.get(step % self.period, ())]
            work = self._thread.submit(self._drawn, step, start, self.micro_batch, streams)
            self._ahead[step, start] = work
        return self._ahead[step, start]

    def draw(self, step: int, start: int, size: int) -> Batch:
        """Samples start … start + size - 1 of a step's global batch, float32 in [-1, 1]."""
        return self._sent(self._drawn(step, start, size, []), step, start)

    def _drawn(self, step: int, start: int, size: int, streams: list[Stream]) -> _Drawn:
        images, labels = self.dataset.batch(self.indices(step, start, size))
        coins, place = None, (self.seed, step, start)
        if self.flip and self.dataset.flip:
            coins = _draw(("uniform", "flip"), place, images.shape) < 0.5
        numbers = {stream: _draw(stream, place, images.shape) for stream in streams}
        if self.device.type == "cuda":
            images, labels = images.pin_memory(), labels.pin_memory()
            for stream, value in numbers.items():
                numbers[stream] = value.pin_memory() if stream[0] == "normal" else value
        return _Drawn(images, labels, coins, numbers)

    def _sent(self, drawn: _Drawn, step: int, start: int) -> Batch:
        data = send(drawn.images, self.device).float() / 127.5 - 1.0
        if drawn.coins is not None:
            coins = send(drawn.coins, self.device).view(-1, 1, 1, 1)
            data = torch.where(coins, data.flip(-1), data)
        if self.section.channels_last:
            data = data.contiguous(memory_format=torch.channels_last)
        y = send(drawn.labels, self.device) if self.labels else None
        place = {"seed": self.seed, "step": step, "start": start}
        return Batch(data, y, **place, whole=self.section.batch_size, drawn=drawn.numbers)

    def indices(self, step: int, start: int, size: int) -> list[int]:
        """Places in the data set of those samples."""
        first, count, places = step * self.section.batch_size + start, len(self.dataset), []
        for position in range(first, first + size):
            epoch, place = divmod(position, count)
            order = self._order  # one object: two threads may ask
            if order[0] != epoch:
                order = (epoch, randomness.permutation(self.seed, "order", epoch, count))
                self._order = order
            places.append(int(order[1][place]))
        return places


def _micro_batch(section: Training, title: str, group: int) -> int:
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
    if size % group:
        raise UserError(
            f"{title}: {group} consecutive samples share a draw, but each of {processes} "
            f"processes has micro-batches of {size}; change batch_size or --processes"
        )
    return size
