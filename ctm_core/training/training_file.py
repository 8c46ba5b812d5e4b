"""``training.json``: what a training was; and ``speed.json``: how long a job took."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from ctm_core.config import Name, validated
from ctm_core.runtime.files import read_record

AGAIN = (
    "make it again with `ctm train` or `ctm teacher` (in the workflow: `snakemake --forcerun "
    "FILE`), which repeats no training that is finished"
)

Count = Annotated[int, Field(ge=0, le=10**15)]


class Fork(BaseModel, frozen=True):
    """The step of another model that a training starts from."""

    model: Name
    step: Count


class TrainingRecord(BaseModel, frozen=True):
    """What is read of a ``training.json``."""

    experiment: Name
    model: Name
    seed: Annotated[int, Field(ge=0)]
    train_hash: str
    steps: Count
    init_from: Fork | None = None
    parameters: Count
    exact: bool
    forward_passes: dict[str, Count]
    precision: str
    curve_sha256: str | None = None  #: of the ``training.jsonl`` beside it


class Speed(BaseModel, frozen=True):
    """A ``speed.json``: how long a training or an evaluation took, and on what."""

    seconds: Annotated[float, Field(ge=0, le=1e15)]
    hardware: dict[str, Any] = {}


def read_training(path: Path) -> TrainingRecord:
    """Read a ``training.json``; raises UserError if it was edited, or holds what cannot be."""
    return validated(TrainingRecord, read_record(path, AGAIN), path)


def read_speed(path: Path) -> Speed | None:
    """Read a ``speed.json``; None if there is none, as of older versions."""
    if not path.exists():
        return None
    return validated(Speed, read_record(path), path)
