"""An experiment: data, networks, models and their evaluation in one file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any

from pydantic import Field, model_validator

from ctm_core.config import amounts
from ctm_core.config._section import Few, Later, Name, Section, Seeds
from ctm_core.config.datasets import Dataset
from ctm_core.config.network import Diffusion, Network, with_target_time
from ctm_core.config.optimization import WITHOUT_EFFECT, Training, suits_channels_last
from ctm_core.config.resources import Resources
from ctm_core.config.sampling_grid import Cell, Evaluation, Likelihood, ProtocolCell
from ctm_core.config.scaled import LEAST, MOST, scaled
from ctm_core.config.student import Model, Released, Student, Variant
from ctm_core.config.teacher import Teacher
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_json


class Experiment(Section):
    """A teacher, its students, and how they are measured."""

    experiment: Name
    scale: Later[Annotated[float, Field(ge=LEAST, le=MOST)]] = Field(
        1.0, description="factor on all numbers of steps; averages span the same share of them"
    )
    dataset: Dataset
    conditional: bool = Field(False, description="class labels are given to the network")
    variant: Variant = Field("released", description="of every student that does not name its own")
    diffusion: Diffusion = Diffusion()
    network: Network
    teacher: Teacher | None = Field(None, description="null: no model here needs one")
    models: dict[Name, Model] = Field(max_length=100)
    seeds: Seeds = Field(
        (0,), description="training seeds of the students that do not name their own"
    )
    threads: Few = Field(2, description="CPU threads of a training or evaluation job")
    resources: Resources = Resources()
    evaluation: Evaluation

    @model_validator(mode="before")
    @classmethod
    def _scaled(cls, data: Any) -> Any:
        return scaled(data)

    @model_validator(mode="before")
    @classmethod
    def _one_variant_for_all(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("variant") not in ("released", "printed"):
            return data
        if not isinstance(models := data.get("models"), dict):
            return data
        filled = {
            name: {"variant": data["variant"]} | section
            if isinstance(section, dict) and "weights" not in section
            else section
            for name, section in models.items()
        }
        return data | {"models": filled}

    def _problems(self) -> Iterator[str]:
        if "teacher" in self.models:
            yield "`teacher` is the teacher's own name and cannot be a student's"
        if not self.models and self.teacher is None:
            yield "neither a teacher nor models: there is nothing to do"
        halvings = len(self.network.channel_mult) - 1
        if (shape := self.dataset.shape) is not None and shape[1] % 2**halvings:
            yield (
                f"network.channel_mult: its {halvings + 1} levels need a resolution that is a "
                f"multiple of {2**halvings}, but {self.dataset.name} has {shape[1]}; change "
                f"{'dataset.resolution or ' if self.dataset.reader else ''}the levels"
            )
        for name, model in self.models.items():
            if model.traits.time_s and not self.network.target_time:
                yield (
                    f"network.architecture {self.network.architecture} has no target time s, so "
                    f"models.{name} ({model.objective}) cannot have it; use "
                    f"{' or '.join(with_target_time())}"
                )
            if isinstance(model, Student):
                yield from self._check_student(name, model)
        if self.teacher is not None and self.teacher.augment and self.network.augment_dim != 9:
            yield (
                "teacher.augment: the network must be told of its nine parameters, or samples "
                "come out augmented; set network.augment_dim to 9"
            )
        yield from self._check_samplers()
        yield from self._check_protocols()
        yield from self._check_likelihood()

    def _check_student(self, name: str, student: Student) -> Iterator[str]:
        if student.uses_teacher and self.teacher is None:
            why = "learns from" if student.traits.teacher else "starts from"
            yield f"models.{name} {why} a teacher, but the experiment has none"
        weak = student.weak_teacher
        if weak is not None and weak not in (steps := self.exported_steps("teacher")[:-1]):
            yield (
                f"models.{name}.weak_teacher: the teacher has no snapshot of step {weak}, only of "
                f"{', '.join(map(str, steps)) or 'none'}; add it to teacher.training.snapshots"
            )
        fork = student.init_from
        if fork is None:
            return
        place = f"models.{name}.init_from"
        parent = self.models.get(fork.model)
        if not isinstance(parent, Student) or fork.model == name:
            trained = [other for other in self.students if other != name]
            yield (
                f"{place}: no other model {fork.model!r} is trained here; there are "
                f"{', '.join(trained) or 'none'}"
            )
        steps = self.exported_steps(fork.model)
        if fork.step not in steps:
            yield (
                f"{place}: {fork.model} exports no weights at step {fork.step}, only at "
                f"{', '.join(map(str, steps))}; add it to its training.snapshots"
            )
        if isinstance(parent, Student):
            unknown = {*(student.seeds or self.seeds)} - {*(parent.seeds or self.seeds)}
            if unknown:
                yield (
                    f"{place}: {name} has the training seed {min(unknown)}, which {fork.model} "
                    "has not; give both the same seeds"
                )
        chain = [name, fork.model]
        while (last := self.students.get(chain[-1])) is not None and last.init_from is not None:
            chain.append(last.init_from.model)
            if chain[-1] in chain[:-1]:
                yield f"{place}: {' from '.join(chain)} is a circle"

    def _check_samplers(self) -> Iterator[str]:
        known = {*self.models} | ({"teacher"} if self.teacher is not None else set())
        for name in self.evaluation.samplers:
            if name not in known:
                yield f"evaluation.samplers names the model {name!r}; models are {sorted(known)}"
        for name in sorted(known - set(self.evaluation.samplers)):
            yield f"evaluation.samplers lacks the model {name!r}"
        yield from amounts.problems(self)  # before anything walks over the cells
        span = self.diffusion.sigma_min, self.diffusion.sigma_max
        for name, grids in self.evaluation.samplers.items():
            student = None if name == "teacher" else self.models[name].traits
            final_only = student is not None and student.final_only
            for grid in grids:
                problem = grid.problem(jumps=student is not None, final_only=final_only, span=span)
                if problem:
                    yield f"evaluation.samplers.{name}: {problem}"

    def _check_protocols(self) -> Iterator[str]:
        # Once a model: thousands of cells may be named.
        sampled = {model: set(self.cells(model)) for model in self.evaluation.samplers}
        for protocol, cells in self.evaluation.protocols.items():
            for cell in cells if cells != "all" else ():
                assert isinstance(cell, ProtocolCell)
                if cell.cell not in sampled.get(cell.model, ()):
                    yield (
                        f"evaluation.protocols.{protocol} names {cell.model} "
                        f"{cell.cell.label}, which evaluation.samplers does not sample"
                    )

    def _check_likelihood(self) -> Iterator[str]:
        section = self.evaluation.likelihood
        for name in section.models if section is not None else ():
            if name not in self.evaluation.samplers:
                yield (
                    f"evaluation.likelihood.models names {name!r}; models are "
                    f"{sorted(self.evaluation.samplers)}"
                )
            if name != "teacher" and self.models[name].traits.final_only:
                yield (
                    f"evaluation.likelihood.models: {name} knows only the jump to the end, so it "
                    "has no denoiser and no likelihood"
                )

    # -- what is sampled and scored -------------------------------------------------------------

    def cells(self, model: str, step: int | None = None) -> list[Cell]:
        """Every cell of a model in the order of the file; of a snapshot, those asked of it."""
        last = step is None or step == self.last_step(model)
        grids = self.evaluation.samplers.get(model, ())
        wanted = [grid for grid in grids if last or grid.steps == "all"]
        return list(dict.fromkeys(cell for grid in wanted for cell in grid.cells()))

    def protocols(self, model: str, step: int | None = None) -> dict[str, list[Cell]]:
        """The cells of a model that each protocol scores; protocols without any are left out."""
        sampled = self.cells(model, step)
        known = set(sampled)
        chosen: dict[str, list[Cell]] = {}
        for name, wanted in self.evaluation.protocols.items():
            cells = sampled
            if wanted != "all":
                named = [
                    entry.cell
                    for entry in wanted
                    if isinstance(entry, ProtocolCell) and entry.model == model
                ]
                cells = [cell for cell in named if cell in known]
            if cells:
                chosen[name] = cells
        return chosen

    def without(self, protocols: Collection[str]) -> Experiment:
        """A copy that these protocols do not score."""
        kept = {n: cells for n, cells in self.evaluation.protocols.items() if n not in protocols}
        optional = tuple(n for n in self.evaluation.optional if n in kept)
        changed = {"protocols": kept, "optional": optional}
        return self.model_copy(update={"evaluation": self.evaluation.model_copy(update=changed)})

    # -- models -----------------------------------------------------------------------------------

    def imported(self, model: str) -> str | None:
        """The file that a model is converted from, by its name in config/assets.yaml; or None."""
        if model == "teacher":
            return self._teacher().asset
        section = self._model(model)
        return section.weights if isinstance(section, Released) else None

    @property
    def trains_teacher(self) -> bool:
        """Whether there is a teacher that is trained here."""
        return self.teacher is not None and self.teacher.training is not None

    @property
    def students(self) -> dict[str, Student]:
        """The models that are trained here."""
        return {name: m for name, m in self.models.items() if isinstance(m, Student)}

    def named_assets(self) -> dict[str, str]:
        """The external files that the config names, by key."""
        named = {
            f"models.{name}.weights": model.weights
            for name, model in self.models.items()
            if isinstance(model, Released)
        }
        if self.teacher is not None and self.teacher.asset is not None:
            named["teacher.asset"] = self.teacher.asset
        if self.dataset.asset is not None:
            named["dataset.source"] = self.dataset.asset
        return named

    def training(self, model: str) -> Training:
        """The training section of the teacher or of a student."""
        if model != "teacher":
            return self.student(model).training
        teacher = self._teacher()
        if teacher.training is None:
            raise UserError(
                f"the teacher of {self.experiment} is not trained here but converted from the "
                f"file {teacher.asset}; see config/assets.yaml"
            )
        return teacher.training

    def student(self, model: str) -> Student:
        """A student's section; raises as :meth:`training`."""
        section = self._model(model)
        if isinstance(section, Released):
            raise UserError(
                f"{model} of {self.experiment} is not trained here but converted from the file "
                f"{section.weights}; see config/assets.yaml"
            )
        return section

    def _model(self, model: str) -> Student | Released:
        if model not in self.models:
            raise UserError(
                f"the experiment {self.experiment} has no student {model!r}; "
                f"its students are {', '.join(self.models)}"
            )
        return self.models[model]

    def _teacher(self) -> Teacher:
        if self.teacher is None:
            raise UserError(f"the experiment {self.experiment} has no teacher")
        return self.teacher

    def last_step(self, model: str) -> int:
        """The training step of a model's final weights; 0 for a converted file that has none."""
        if self.imported(model) is None:
            return self.training(model).steps
        section = None if model == "teacher" else self._model(model)
        return section.step if isinstance(section, Released) else 0

    def exported_steps(self, model: str) -> list[int]:
        """Every step whose weights are exported, the last among them."""
        if self.imported(model) is not None:
            return [self.last_step(model)]
        training = self.training(model)
        return sorted({*training.snapshots, training.steps})

    def fork_steps(self, model: str) -> list[int]:
        """The steps at which other models start from this one, so need its live weights too."""
        forks = (student.init_from for student in self.students.values())
        return sorted({fork.step for fork in forks if fork is not None and fork.model == model})

    def runs(self) -> Iterator[tuple[str, int]]:
        """Every (model, training seed): what is converted once, each student with each seed."""
        if self.teacher is not None:
            yield "teacher", self.teacher.seed
        for model, section in self.models.items():
            for seed in (0,) if isinstance(section, Released) else section.seeds or self.seeds:
                yield model, seed

    # -- hashes -----------------------------------------------------------------------------------

    def resolved(self, precision: str) -> Experiment:
        """A copy without `auto`: every such precision is ``precision``, layouts follow from it."""
        data = self.model_dump()
        shape = self.dataset.shape
        side = None if shape is None else shape[1]
        for section in (data["teacher"] or {}, *data["models"].values()):
            training = section.get("training")
            if training is None:
                continue
            if training["precision"] == "auto":
                training["precision"] = precision
                if precision == "bf16":  # of the frozen networks too
                    training.pop("frozen_precision", None)
            if training["channels_last"] == "auto":
                sizes = (self.network.model_channels, side)
                training["channels_last"] = suits_channels_last(*sizes, training["precision"])
        return Experiment.model_validate(data)

    def train_hash(self, model: str) -> str:
        """SHA-256 over everything that decides a model's weights but its seed.

        Keys that cannot change weights (:data:`WITHOUT_EFFECT`) are left out.
        """
        data = self.model_dump(mode="json")
        parts = {key: data[key] for key in ("conditional", "diffusion", "network")}
        # The source does not matter: the fingerprint of the data is checked.
        learned = {"name": self.dataset.name, **self.dataset.settings}
        parts |= {"dataset": learned if self.dataset.settings else self.dataset.name, "format": 1}
        section = self._teacher() if model == "teacher" else self._model(model)
        if isinstance(section, Teacher) or (isinstance(section, Student) and section.uses_teacher):
            parts["teacher"] = _effective(data["teacher"])
        if isinstance(section, Student) and section.init_from is not None:
            parts["init_from"] = self.train_hash(section.init_from.model)
        if model != "teacher":
            parts["student"] = _effective(data["models"][model])
            parts["student"].pop("seeds", None)  # a seed has a folder of its own
        return sha256_json(parts)

    def evaluation_hash(self, model: str, step: int | None = None) -> str:
        """SHA-256 over everything that decides a model's rows beside its weights."""
        section = self.evaluation
        decisive: dict[str, Any] = {
            "cells": [cell.key for cell in self.cells(model, step)],
            "protocols": {
                name: [cell.key for cell in cells]
                for name, cells in self.protocols(model, step).items()
            },
            "sample_seeds": section.sample_seeds,
            "batch_size": section.batch_size,
            **section.sampled_in(),
        }
        if (measured := self.likelihood(model, step)) is not None:
            decisive["likelihood"] = measured.model_dump()
        return sha256_json(decisive)

    def likelihood(self, model: str, step: int | None = None) -> Likelihood | None:
        """How bits per dimension of a model at a step are measured, if they are wanted."""
        section = self.evaluation.likelihood
        last = step is None or step == self.last_step(model)
        return section if section is not None and model in section.models and last else None


def _effective(section: dict[str, Any]) -> dict[str, Any]:
    if section.get("training") is None:
        return section
    training = {k: v for k, v in section["training"].items() if k not in WITHOUT_EFFECT}
    return section | {"training": training}
