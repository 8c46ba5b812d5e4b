"""``evaluation.json``: every score of one model, training seed and step, typed and in range.

It is written and read through one model, with a hash over its content, so that a value that no
evaluation can give, or one that was edited, never reaches a table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, model_validator

from ctm_core.config import Cell, Name, validated
from ctm_core.config._section import Times
from ctm_core.config.metric_registry import FAMILIES
from ctm_core.evaluation.metrics import names
from ctm_core.runtime.files import read_record, write_record

AGAIN = "make it again with `ctm evaluate` (in the workflow: `snakemake --forcerun FILE`)"


def _legible(text: str) -> str:
    if not text.isprintable():
        raise ValueError("text of one line, without control characters, is expected here")
    return text


def _metric(name: str) -> str:
    names.parse(name)
    return name


Text = Annotated[str, Field(max_length=500), AfterValidator(_legible)]
#: Far beyond what is measured, and small enough to be squared and summed.
Finite = Annotated[float, Field(ge=-1e100, le=1e100)]
Least0 = Annotated[float, Field(ge=0, le=1e100)]
Count = Annotated[int, Field(ge=0, le=10**15)]
Several = Annotated[str, Field(pattern=r"^[0-9]+(\+[0-9]+)*$", max_length=500)]


class Score(BaseModel, frozen=True):
    """One value: a cell sampled with one seed (or several pooled), scored by one metric.

    ``standard_error`` has ``freedom`` degrees of freedom: from leaving out blocks of the samples,
    or the metric's own.
    """

    sample_seed: Annotated[int, Field(ge=0, strict=True)] | Several
    sampler: Name  #: there may be no such sampler any more
    gamma: Annotated[float, Field(ge=0, le=1)] | None
    nfe: Count
    times: Times = ()
    protocol: Name
    metric: Annotated[str, AfterValidator(_metric)]
    n: Annotated[Count, Field(ge=1)]
    value: Finite
    rank_deficient: bool = False
    standard_error: Least0 | None = None
    freedom: Annotated[Count, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Score:
        if (self.standard_error is None) != (self.freedom is None):
            raise ValueError("standard_error and freedom go together")
        if self.times and len(self.times) != self.nfe - 1:
            raise ValueError(f"nfe {self.nfe} has no {len(self.times)} times between its jumps")
        name = names.parse(self.metric)
        low, high = FAMILIES[name.family].range
        if not (low <= self.value <= high or name.extrapolated):
            raise ValueError(f"{self.metric} lies in {low:g} … {high:g}, not at {self.value:g}")
        return self

    @property
    def cell(self) -> Cell:
        """The cell."""
        return Cell.of(self.sampler, self.nfe, self.gamma, self.times)


class JumpError(BaseModel, frozen=True):
    """How far a model's jump from t to s misses the teacher's solution, root mean square."""

    t: Least0
    s: Least0
    error: Least0


class Evaluation(BaseModel, frozen=True):
    """An ``evaluation.json``: all scores of one (model, training seed, step)."""

    experiment: Name
    dataset: Name
    dataset_fingerprint: Text | None  # None: converted weights, whose data is not recorded
    model: Name
    objective: Text
    step: Count
    train_seed: Annotated[int, Field(ge=0)]
    params_m: Least0
    checkpoint_sha256: Text
    train_hash: Text
    code_version: Text
    protocols: dict[Name, dict[str, Any]]
    rows: tuple[Score, ...]
    trajectory: tuple[JumpError, ...] = ()
    path: Path = Path()  #: the file it was read from


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation; raises UserError if it was edited, or holds what cannot be."""
    return validated(Evaluation, read_record(path, AGAIN) | {"path": path}, path)


def write_evaluation(path: Path, record: dict[str, Any], source: Path | None = None) -> None:
    """Write an evaluation with a hash over its content.

    Raises
    ------
    UserError
        If its values cannot be; the sentence names ``source``, where they come from.
    """
    validated(Evaluation, record, source or path)
    write_record(path, record)
