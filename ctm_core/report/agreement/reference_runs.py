"""``config/reference/<experiment>.json``: what an experiment gave when its reference was made.

It holds single values, not means: by processor setting (threads, precision, machine), training
seed and sampling seed, so that the spread between trainings and that between machines can be told
apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from ctm_core.config import Name, validated
from ctm_core.config.project import locate
from ctm_core.config.sampling_grid import Cell
from ctm_core.evaluation.evaluation_file import Count, Finite, Text
from ctm_core.report.agreement.observations import Observations, Quantity, observe
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import read_record, write_record
from ctm_core.training.training_file import read_speed

FORMAT = 1
AGAIN = "make it again with `python studies/reference/run.py`"
TrainSeed = Annotated[str, Field(pattern=r"^[0-9]{1,19}$")]


class Setting(BaseModel, frozen=True):
    """How one of the runs was made."""

    precision: Text
    hardware: dict[str, Any]
    code_versions: tuple[Text, ...]
    train_hashes: dict[Name, Text]


class Measured(BaseModel, frozen=True):
    """All values of one quantity: by setting and training seed, in the order of the samplings."""

    model: Name
    step: Count
    sampler: str
    nfe: Count
    gamma: float | None
    times: tuple[float, ...] = ()
    protocol: str
    metric: Text
    sample_seeds: Annotated[tuple[Annotated[str, Field(max_length=500)], ...], Field(min_length=1)]
    values: dict[Text, dict[TrainSeed, tuple[Finite, ...]]]

    @model_validator(mode="after")
    def _consistent(self) -> Measured:
        sizes = {len(one) for known in self.values.values() for one in known.values()}
        if sizes != {len(self.sample_seeds)}:
            raise ValueError("each training needs a value for each of sample_seeds")
        return self

    @property
    def quantity(self) -> Quantity:
        """What was measured."""
        cell = Cell(self.sampler, self.nfe, self.gamma, self.times)
        return Quantity(self.model, self.step, cell, self.protocol, self.metric)

    def by_seed(self, setting: str) -> dict[int, dict[str, float]]:
        """Values of one setting by training seed and sampling seed."""
        known = self.values.get(setting, {})
        return {
            int(seed): dict(zip(self.sample_seeds, values, strict=True))
            for seed, values in known.items()
        }


class Reference(BaseModel, frozen=True):
    """A reference file."""

    experiment: Name
    dataset_fingerprint: Text
    configuration: dict[str, Any]
    last_steps: dict[Name, Count]
    protocols: dict[Name, dict[str, Any]]
    settings: dict[Text, Setting]
    measured: tuple[Measured, ...]

    @model_validator(mode="after")
    def _consistent(self) -> Reference:
        for one in self.measured:
            if one.model not in self.last_steps or one.step > self.last_steps[one.model]:
                raise ValueError(f"measured goes beyond last_steps of {one.model}")
            if one.quantity.of_training and not one.step:
                raise ValueError(f"measured has losses of {one.model} before its first step")
            if unknown := one.values.keys() - self.settings.keys():
                raise ValueError(f"measured names the setting {min(unknown)}, settings does not")
        return self

    def hashes(self, model: str) -> set[str]:
        """Every hash of a model's configuration: one for each precision."""
        hashes = (setting.train_hashes.get(model) for setting in self.settings.values())
        return {known for known in hashes if known is not None}


def reference_file(experiment: str) -> Path:
    """Where the reference of an experiment stands, if there is one."""
    return Path(locate(f"config/reference/{experiment}.json"))


def read_reference(path: Path) -> Reference:
    """Read a reference; raises UserError if it is missing, damaged or of another version."""
    record = read_record(path, AGAIN)
    if record.get("format") != FORMAT:
        raise UserError(
            f"{path} is a reference of format {record.get('format')}, but this version reads "
            f"format {FORMAT}; take the reference of this version, or {AGAIN}"
        )
    return validated(Reference, record, path)


def write_reference(
    runs: Mapping[str, Path], experiment: str, configuration: Mapping[str, Any], path: Path
) -> None:
    """Write what the results of several runs, by setting, say of one experiment."""
    observed: dict[str, Observations] = {}
    settings: dict[str, Any] = {}
    for setting, results in runs.items():
        own = observed[setting] = _of(observe(results), experiment, results)
        settings[setting] = {
            "precision": ", ".join(sorted(set(own.precisions.values()))),
            "hardware": _hardware(results / experiment),
            "code_versions": sorted(own.code_versions),
            "train_hashes": dict(sorted(own.hashes.items())),
        }
        first = next(iter(observed.values()))
        for what in ("fingerprint", "protocols", "last_steps"):
            if getattr(own, what) != getattr(first, what):
                raise UserError(
                    f"{results} and the other runs differ in their {what.replace('_', ' ')}; a "
                    "reference is of one configuration"
                )
    quantities = sorted({q for own in observed.values() for q in own.values}, key=_order)
    record = {
        "format": FORMAT,
        "experiment": experiment,
        "dataset_fingerprint": first.fingerprint,
        "configuration": configuration,
        "last_steps": first.last_steps,
        "protocols": first.protocols,
        "settings": settings,
        "measured": [_measured(quantity, observed) for quantity in quantities],
    }
    validated(Reference, record, path)
    write_record(path, record)


def _of(observed: Mapping[str, Observations], experiment: str, results: Path) -> Observations:
    if experiment not in observed:
        raise UserError(f"{results}/runs.csv has no rows of {experiment}; run it first")
    return observed[experiment]


def _order(quantity: Quantity) -> tuple[Any, ...]:
    return quantity.order


def _hardware(folder: Path) -> dict[str, Any]:
    speeds = (read_speed(path) for path in sorted(folder.glob("*/seed-*/speed.json")))
    return next((speed.hardware for speed in speeds if speed and speed.hardware), {})


def _measured(quantity: Quantity, observed: Mapping[str, Observations]) -> dict[str, Any]:
    known = {name: own.values.get(quantity, {}) for name, own in observed.items()}
    every = [set(values) for own in known.values() for values in own.values()]
    shared = sorted(set.intersection(*every))
    return {
        "model": quantity.model,
        "step": quantity.step,
        **quantity.cell._asdict(),
        "protocol": quantity.protocol,
        "metric": quantity.metric,
        "sample_seeds": shared,
        "values": {
            name: {str(seed): [values[s] for s in shared] for seed, values in own.items()}
            for name, own in known.items()
            if own
        },
    }
