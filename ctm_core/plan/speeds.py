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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_json

__all__ = ["DeviceSpeed", "Speed", "parse_device_speed", "read_speed"]

AGAIN = "make it by `python benchmarks/plan.py`"
_SPEED = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?)\s*(x|tflop/s|tflops)", re.IGNORECASE)


@dataclass(frozen=True)
class DeviceSpeed:
    """Another device: a factor on the measured machine, or operations per second."""

    given: str
    factor: float = 1.0
    rate: float | None = None


def parse_device_speed(text: str) -> DeviceSpeed:
    """Read ``40x`` or ``60TFLOP/s``.

    Raises
    ------
    UserError
        If it is neither, or not above 0.
    """
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


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes
    ----------
    device, threads
        Of the measured machine.
    rates
        By (precision, whether there is a backward pass): operations per image, ascending, and the
        operations per second of each.
    update
        Seconds per weight and step of the optimiser and one EMA.
    evaluations
        Of the denoiser in a likelihood, by the solver's tolerance, ascending.
    process
        Bytes of a process that has only loaded torch.
    start
        Seconds that the command takes before a job's work begins.
    """

    device: str
    threads: int
    rates: Mapping[tuple[str, bool], tuple[tuple[float, ...], tuple[float, ...]]]
    update: float
    evaluations: tuple[tuple[float, float], ...]
    process: float
    start: float

    def rate(self, operations: float, *, precision: str, backward: bool) -> float:
        """Operations per second of a network that takes ``operations`` per image."""
        sizes, speeds = self.rates[precision, backward]
        at = np.interp(np.log(max(operations, 1.0)), np.log(sizes), np.log(speeds))
        return float(np.exp(at))

    def seconds(
        self,
        operations: float,
        total: float,
        *,
        precision: str,
        backward: bool,
        device: DeviceSpeed | None = None,
    ) -> float:
        """How long ``total`` operations take, in passes of ``operations`` forward each."""
        if device is not None and device.rate is not None:
            return total / device.rate
        rate = self.rate(operations, precision=precision, backward=backward)
        return total / rate / (device.factor if device is not None else 1.0)

    def likelihood(self, tolerance: float) -> float:
        """Evaluations of the denoiser per likelihood."""
        tolerances, counts = zip(*self.evaluations, strict=True)
        at = np.interp(np.log(tolerance), np.log(tolerances), np.log(counts))
        return float(np.exp(at))


def read_speed(path: Path) -> Speed:
    """Read what ``benchmarks/plan.py`` wrote.

    Raises
    ------
    UserError
        If the file is missing or holds something else.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {AGAIN}, or give another file by --speed")
    stored = read_json(path)
    try:
        return _speed(stored)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} does not hold measured speeds; {AGAIN}") from None


def _speed(stored: Mapping[str, Any]) -> Speed:
    points: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for row in stored["networks"]:
        backward = {"forward": False, "train": True}[row["mode"]]
        pair = (float(row["operations"]), float(row["operations_per_second"]))
        if min(pair) <= 0:
            raise ValueError("speeds are above 0")
        points.setdefault((row["precision"], backward), []).append(pair)
    rates = {}
    for precision in ("fp32", "bf16"):
        for backward in (False, True):
            sizes, speeds = zip(*sorted(points[precision, backward]), strict=True)
            rates[precision, backward] = (tuple(sizes), tuple(speeds))
    evaluations = sorted(
        (float(row["tolerance"]), float(row["evaluations"])) for row in stored["likelihood"]
    )
    if not evaluations or min(min(pair) for pair in evaluations) <= 0:
        raise ValueError("evaluations are above 0")
    return Speed(
        device=str(stored["hardware"]["device"]),
        threads=int(stored["hardware"]["threads"]),
        rates=rates,
        update=float(stored["update_seconds_per_weight"]),
        evaluations=tuple(evaluations),
        process=float(stored["process_bytes"]),
        start=float(stored["start_seconds"]),
    )
