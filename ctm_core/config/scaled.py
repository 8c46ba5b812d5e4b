"""The key ``scale`` of an experiment: the same schedules over fewer or more steps.

It is applied to the plain data of a file before anything else reads them, so hashes and plans
follow from the numbers that result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

#: Bounds of the key.
LEAST, MOST = 1e-4, 1e4
#: Keys of a training section that count steps; 0 means never.
STEPS = (
    "steps",
    "warmup_steps",
    "decay_steps",
    "checkpoint_every",
    "log_every",
    "preview_every",
    "snapshots",
)


def scaled(data: Any) -> Any:
    """An experiment's data with ``scale`` carried out and set to 1.

    Numbers of steps are multiplied and rounded, to at least 1. Averages span the same share of a
    training: a decay d per step becomes d ** (1 / scale). What is wrong is left for validation.
    """
    given = data.get("scale") if isinstance(data, Mapping) else None
    if not _number(given) or given == 1 or not LEAST <= given <= MOST:
        return data
    factor = float(given)
    teacher, models = data.get("teacher"), data.get("models")
    changed: dict[str, Any] = {"scale": 1.0, "teacher": _optimised(teacher, factor)}
    if isinstance(models, Mapping):
        changed["models"] = {name: _optimised(model, factor) for name, model in models.items()}
    return {**data, **changed}


def _optimised(section: Any, factor: float) -> Any:
    """A teacher or student."""
    if not isinstance(section, Mapping):
        return section
    changed: dict[str, Any] = {}
    if isinstance(training := section.get("training"), Mapping):
        changed["training"] = {
            **training,
            **{key: _steps(training[key], factor) for key in STEPS if key in training},
            **{
                key: _decay(training[key], factor)
                for key in ("ema", "evaluated_ema")
                if key in training
            },
        }
    if isinstance(fork := section.get("init_from"), Mapping) and "step" in fork:
        changed["init_from"] = {**fork, "step": _steps(fork["step"], factor)}
    return {**section, **changed}


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _steps(value: Any, factor: float) -> Any:
    if isinstance(value, list | tuple):
        return [_steps(one, factor) for one in value]
    return max(1, round(value * factor)) if _number(value) and 0 < value < 2**53 else value


def _decay(value: Any, factor: float) -> Any:
    if isinstance(value, list | tuple):
        return [_decay(one, factor) for one in value]
    return value ** (1 / factor) if _number(value) and 0 < value < 1 else value
