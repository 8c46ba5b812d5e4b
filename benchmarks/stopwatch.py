"""CPU seconds per part of a step: self time of named functions, excluding their callees.

Functions are wrapped where they are defined, once for all variants of a step. A wrapped function
called within another one stops the other's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import baseline
import torch

from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training import balance, ema
from ctm_core.training.adversary import Adversary
from ctm_core.training.distance import Distance
from ctm_core.training.loop import Trainer
from ctm_core.training.objectives.ctm import CtmObjective

#: Components in the order of a step.
COMPONENTS = (
    "teacher solve",
    "target maps",
    "student forward",
    "outer map",
    "distance",
    "adversary forward",
    "back to F",
    "adaptive weights",
    "back through the network",
    "optimiser",
    "EMA",
    "rest",
)

spent: dict[str, float] = dict.fromkeys(COMPONENTS, 0.0)
_running: list[str] = ["rest"]
_since = time.process_time()


def reset() -> None:
    """Reset all measurements."""
    global _since
    spent.update(dict.fromkeys(COMPONENTS, 0.0))
    _since = time.process_time()


def _switch() -> None:
    global _since
    now = time.process_time()
    spent[_running[-1]] += now - _since
    _since = now


def _timed(work: Callable[..., Any], name: str | Callable[[], str | None]) -> Callable[..., Any]:
    @wraps(work)
    def timed(*arguments: Any, **options: Any) -> Any:
        part = name if isinstance(name, str) else name()
        if part is None:  # belongs to the caller
            return work(*arguments, **options)
        _switch()
        _running.append(part)
        try:
            return work(*arguments, **options)
        finally:
            _switch()
            _running.pop()

    return timed


def _network() -> str | None:
    """A forward pass with gradient is the student's, unless it is the outer map."""
    learning = torch.is_grad_enabled() and _running[-1] != "outer map"
    return "student forward" if learning else None


def _outer() -> str | None:
    return "outer map" if torch.is_grad_enabled() else None


def install() -> None:
    """Wrap the functions."""
    for owner in (CtmObjective, baseline.Plain):
        owner.solve = _timed(owner.solve, "teacher solve")
        owner.to_data = _timed(owner.to_data, _outer)
    CtmObjective.matching_target = _timed(CtmObjective.matching_target, "target maps")
    Trajectory.raw = _timed(Trajectory.raw, _network)
    Distance.__call__ = _timed(Distance.__call__, "distance")
    Adversary.generator_loss = _timed(Adversary.generator_loss, "adversary forward")
    balance.Loss.of = staticmethod(_timed(balance.Loss.of, "back to F"))
    balance.at_weight = _timed(balance.at_weight, "adaptive weights")
    balance.pull_back = _timed(balance.pull_back, "back through the network")
    baseline.compare = _timed(baseline.compare, "distance")
    baseline.at_weight = _timed(baseline.at_weight, "adaptive weights")
    baseline.through_network = _timed(baseline.through_network, "back through the network")
    Trainer._apply = _timed(Trainer._apply, "optimiser")
    ema.update = _timed(ema.update, "EMA")


def peak() -> float:
    """Peak resident memory of this process so far, in GB."""
    # Not getrusage: its peak is inherited from the parent process.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9
