"""How fast a device is: what was measured on one machine, and how another compares with it.

``benchmarks/plan.py`` measures operations a second of the project's own networks of several sizes,
for forward passes alone and with the backward pass, in each precision, and writes them to
``benchmarks/speed.json``. Small networks reach fewer than large ones, so a network is looked up by
its operations an image, between the two nearest that were measured.

Another device is told by ``--device-speed``: ``40x``, so many times as fast as the measured
machine, or ``60TFLOP/s``, what it sustains whatever the network.
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
    """Another device: a factor on the measured machine, or operations a second."""

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
    found = _SPEED.fullmatch(text.strip())
    value = float(found[1]) if found else 0.0
    if found is None or not 0 < value < 1e9:
        raise UserError(
            f"--device-speed {text}: give a factor on the measured machine, such as 40x, or what "
            "the device sustains, such as 60TFLOP/s"
        )
    if found[2].lower() == "x":
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
        By (precision, whether the backward pass is done too): operations an image and operations a
        second, both ascending in the former.
    update
        Seconds that the optimiser and an average take for a weight in a step.
    evaluations
        Of the denoiser in a likelihood, by the solver's tolerance, ascending.
    process
        Bytes of a process that has loaded torch and nothing else.
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
        """Operations a second of a network that takes ``operations`` an image."""
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
        """Evaluations of the denoiser that a likelihood takes."""
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
    told = read_json(path)
    try:
        return _speed(told)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} holds no measured speeds of this project; {AGAIN}") from None


def _speed(told: Mapping[str, Any]) -> Speed:
    found: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for row in told["networks"]:
        backward = {"forward": False, "train": True}[row["mode"]]
        pair = (float(row["operations"]), float(row["operations_per_second"]))
        if min(pair) <= 0:
            raise ValueError("speeds are above 0")
        found.setdefault((row["precision"], backward), []).append(pair)
    rates = {}
    for precision in ("fp32", "bf16"):
        for backward in (False, True):
            sizes, speeds = zip(*sorted(found[precision, backward]), strict=True)
            rates[precision, backward] = (tuple(sizes), tuple(speeds))
    evaluations = sorted(
        (float(row["tolerance"]), float(row["evaluations"])) for row in told["likelihood"]
    )
    if not evaluations or min(min(pair) for pair in evaluations) <= 0:
        raise ValueError("evaluations are above 0")
    return Speed(
        device=str(told["hardware"]["device"]),
        threads=int(told["hardware"]["threads"]),
        rates=rates,
        update=float(told["update_seconds_per_weight"]),
        evaluations=tuple(evaluations),
        process=float(told["process_bytes"]),
        start=float(told["start_seconds"]),
    )
