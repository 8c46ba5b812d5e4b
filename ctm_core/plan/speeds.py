"""How fast a device is: what was measured on one machine, and how another compares with it.

``benchmarks/plan.py`` measures the operations per second of the project's own networks of several
sizes, for forward passes alone and with the backward pass, in each precision, and writes them to
``benchmarks/speed.json``. Small networks reach fewer than large ones, so the speed of a network is
interpolated by its operations per image between the two nearest measured.

Another device is given by ``--device-speed``: ``40x``, forty times as fast as the measured one,
or ``60TFLOP/s``, its sustained throughput whatever the network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json

#: Positive numbers, ascending, and what was measured at each.
Points = tuple[tuple[float, ...], tuple[float, ...]]
AGAIN = "make it by `python benchmarks/plan.py`"
#: Of the speed of one thread, what a further one adds.
FURTHER_THREAD = 0.7
_SPEED = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?)\s*(x|tflop/s|tflops)", re.IGNORECASE)


@dataclass(frozen=True)
class DeviceSpeed:
    """The measured machine, or by a factor on it or its operations per second another device."""

    given: str | None = None
    factor: float = 1.0
    rate: float | None = None


def parse_device_speed(text: str | None) -> DeviceSpeed:
    """Read ``40x`` or ``60TFLOP/s``; None is the measured machine."""
    if text is None:
        return DeviceSpeed()
    match = _SPEED.fullmatch(text.strip())
    value = float(match[1]) if match else 0.0
    if match is None or not 0 < value < 1e9:
        raise UserError(
            f"--device-speed {text}: give a factor on the measured machine, such as 40x, or what "
            "the device sustains, such as 60TFLOP/s"
        )
    if match[2].lower() == "x":
        return DeviceSpeed(text, factor=value)
    return DeviceSpeed(text, rate=value * 1e12)


class Machine(NamedTuple):
    """What the run has: cores alone, or a GPU too if its speed is given."""

    cores: int
    device: DeviceSpeed

    @property
    def gpu(self) -> bool:
        return self.device.given is not None

    @property
    def threads(self) -> int:
        """Of each job. One runs at a time: the longest, the teacher's, has none beside it."""
        return min(16, self.cores)

    @property
    def speed(self) -> DeviceSpeed:
        """Of a job."""
        factor = 1 + FURTHER_THREAD * (self.threads - 1)
        return self.device if self.gpu else DeviceSpeed(factor=factor)

    def __str__(self) -> str:
        if self.gpu:
            return f"a GPU of {self.device.given}"
        return f"{self.cores} core{'s' if self.cores > 1 else ''}"


@dataclass(frozen=True)
class Speed:
    """What was measured on one machine."""

    device: str
    threads: int
    #: Operations per second by operations per image, of each precision, without and with a
    #: backward pass.
    rates: Mapping[tuple[str, bool], Points]
    update: float  #: seconds per weight and step of the optimiser and one EMA
    evaluations: Points  #: of the denoiser in a likelihood, by the solver's tolerance
    process: float  #: peak bytes of a process that steps the smallest of networks
    start: float  #: seconds that the command takes before a job's work begins

    def rate(self, operations: float, precision: str, backward: bool) -> float:
        """Operations per second of a network that takes ``operations`` per image."""
        return _interpolated(max(operations, 1.0), self.rates[precision, backward])

    def seconds(
        self, operations: float, total: float, precision: str, backward: bool, device: DeviceSpeed
    ) -> float:
        """How long ``total`` operations take, in passes of ``operations`` forward each."""
        if device.rate is not None:
            return total / device.rate
        return total / self.rate(operations, precision, backward) / device.factor

    def likelihood(self, tolerance: float) -> float:
        """Evaluations of the denoiser per likelihood."""
        return _interpolated(tolerance, self.evaluations)


def _interpolated(at: float, points: Points) -> float:
    """Between measured points by orders of magnitude; beyond them as at the last."""
    measured, values = map(np.log, points)
    return float(np.exp(np.interp(np.log(at), measured, values)))


def read_speed(path: Path) -> Speed:
    """Read what ``benchmarks/plan.py`` wrote; a UserError if it is missing or something else."""
    if not path.is_file():
        raise UserError(f"{path} is missing; {AGAIN}, or give another file by --speed")
    stored = read_json(path)
    try:
        return _speed(stored)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} does not hold measured speeds; {AGAIN}") from None


def _speed(stored: Mapping[str, Any]) -> Speed:
    networks = stored["networks"]
    rates = {
        (precision, mode == "train"): _points(
            (row["operations"], row["operations_per_second"])
            for row in networks
            if (row["precision"], row["mode"]) == (precision, mode)
        )
        for precision in ("fp32", "bf16")
        for mode in ("forward", "train")
    }
    return Speed(
        device=str(stored["hardware"]["device"]),
        threads=int(stored["hardware"]["threads"]),
        rates=rates,
        update=float(stored["update_seconds_per_weight"]),
        evaluations=_points(
            (row["tolerance"], row["evaluations"]) for row in stored["likelihood"]
        ),
        process=float(stored["process_bytes"]),
        start=float(stored["start_seconds"]),
    )


def _points(rows: Iterable[tuple[float, float]]) -> Points:
    at, values = zip(*sorted((float(x), float(y)) for x, y in rows), strict=True)
    if min(*at, *values) <= 0:
        raise ValueError("measured numbers are above 0")
    return at, values
