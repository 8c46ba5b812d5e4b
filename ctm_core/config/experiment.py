"""An experiment: data, networks, models and their evaluation in one file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field, field_validator, model_validator

from ctm_core.config._section import Name, Positive, Section, Seed, without_repetition
from ctm_core.config.evaluation import Cell, Evaluation, ProtocolCell
from ctm_core.config.network import WITH_TARGET_TIME, Diffusion, Network
from ctm_core.config.student import Student
from ctm_core.config.teacher import Teacher
from ctm_core.config.training import WITHOUT_EFFECT, Training
from ctm_core.errors import UserError
from ctm_core.files import sha256_json


class Dataset(Section):
    """Which images are learned."""

    name: Name = Field(description="a name that `ctm data` knows")
    source: str | None = Field(
        default=None, description="folder or URL, for data sets that need one"
    )


class Experiment(Section):
    """A teacher, its students, and how they are measured."""

    experiment: Name
    dataset: Dataset
    conditional: bool = Field(default=False, description="class labels are given to the network")
    diffusion: Diffusion = Diffusion()
    network: Network
    teacher: Teacher
    models: dict[Name, Student]
    seeds: tuple[Seed, ...] = Field(
        default=(0,), min_length=1, description="training seeds of the students"
    )
    threads: Positive = Field(default=2, description="CPU threads of a training or evaluation job")
    evaluation: Evaluation

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return without_repetition(value)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        known = {"teacher", *self.models}
        if "teacher" in self.models:
            raise ValueError("`teacher` is the teacher's own name and cannot be a student's")
        if self.models and not self.network.target_time:
            raise ValueError(
                f"network.architecture {self.network.architecture} has no target time s, so it "
                f"can be no student's; use {' or '.join(WITH_TARGET_TIME)}"
            )
        for name in self.evaluation.samplers:
            if name not in known:
                raise ValueError(
                    f"evaluation.samplers names the model {name!r}; models are {sorted(known)}"
                )
        for name in sorted(known - set(self.evaluation.samplers)):
            raise ValueError(f"evaluation.samplers lacks the model {name!r}")
        for grid in self.evaluation.samplers["teacher"]:
            if grid.gamma:
                raise ValueError("the teacher has no jumps: its samplers are heun and euler")
        for protocol, cells in self.evaluation.protocols.items():
            for cell in cells if cells != "all" else ():
                assert isinstance(cell, ProtocolCell)
                if cell.cell not in self.cells(cell.model):
                    raise ValueError(
                        f"evaluation.protocols.{protocol} names {cell.model} "
                        f"{cell.cell.label}, which evaluation.samplers does not sample"
                    )
        return self

    def cells(self, model: str) -> list[Cell]:
        """Every cell of a model, in the order of the file."""
        grids = self.evaluation.samplers.get(model, ())
        return list(dict.fromkeys(cell for grid in grids for cell in grid.cells()))

    def protocols(self, model: str) -> dict[str, list[Cell]]:
        """The cells of a model that each protocol scores; protocols without any are left out."""
        chosen: dict[str, list[Cell]] = {}
        for name, wanted in self.evaluation.protocols.items():
            if wanted == "all":
                cells = self.cells(model)
            else:
                cells = [
                    entry.cell
                    for entry in wanted
                    if isinstance(entry, ProtocolCell) and entry.model == model
                ]
            if cells:
                chosen[name] = cells
        return chosen

    def training(self, model: str) -> Training:
        """The training section of the teacher or of a student.

        Raises
        ------
        UserError
            If the experiment has no such student.
        """
        return self.teacher.training if model == "teacher" else self.student(model).training

    def student(self, model: str) -> Student:
        """A student's section; raises as :meth:`training`."""
        if model not in self.models:
            raise UserError(
                f"the experiment {self.experiment} has no student {model!r}; "
                f"its students are {', '.join(self.models)}"
            )
        return self.models[model]

    def runs(self) -> Iterator[tuple[str, int]]:
        """Every (model, training seed): the teacher once, each student with each seed."""
        yield "teacher", self.teacher.seed
        for model in self.models:
            for seed in self.seeds:
                yield model, seed

    def resolved(self, precision: str) -> Experiment:
        """A copy in which every `precision: auto` is replaced by ``precision``."""
        data = self.model_dump()
        for section in (data["teacher"], *data["models"].values()):
            if section["training"]["precision"] == "auto":
                section["training"]["precision"] = precision
        return Experiment.model_validate(data)

    def _ground(self) -> dict[str, Any]:
        data = self.model_dump(mode="json")
        # Where the files came from is no matter: the fingerprint of what they hold is checked.
        ground = {key: data[key] for key in ("conditional", "diffusion", "network")}
        return ground | {"dataset": self.dataset.name}

    def train_hash(self, model: str) -> str:
        """SHA-256 over everything that decides a model's weights but its seed.

        Covers data set, network, diffusion, the teacher's training and, for a student, its own
        section; keys that cannot change weights (:data:`WITHOUT_EFFECT`) are left out.
        """
        data = self.model_dump(mode="json")
        parts = self._ground() | {"teacher": _effective(data["teacher"]), "format": 1}
        if model != "teacher":
            self.student(model)
            parts["student"] = _effective(data["models"][model])
        return sha256_json(parts)

    def evaluation_hash(self, model: str) -> str:
        """SHA-256 over everything that decides a model's rows beside its weights."""
        section = self.evaluation
        return sha256_json(
            {
                "cells": self.cells(model),
                "protocols": self.protocols(model),
                "sample_seeds": section.sample_seeds,
                "batch_size": section.batch_size,
            }
        )


def _effective(section: dict[str, Any]) -> dict[str, Any]:
    training = {k: v for k, v in section["training"].items() if k not in WITHOUT_EFFECT}
    return section | {"training": training}
