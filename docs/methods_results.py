"""What config/digits-methods.yaml gave: rows, training cost and memory, and what diverged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ctm_core.config import Cell, Experiment, layout
from ctm_core.config.dag import training
from ctm_core.config.project import open_project
from ctm_core.plan import SPEED
from ctm_core.plan.costs import Costs
from ctm_core.plan.speeds import read_speed
from ctm_core.report.scores import Row, aggregate, read_evaluations
from ctm_core.report.statistics import Summary
from ctm_core.runtime.errors import Diverged, UserError
from ctm_core.runtime.files import read_record

CONFIG = Path(__file__).resolve().parents[1] / "config/experiments/digits-methods.yaml"
METRIC = "fd_classifier_digits_1024"


@dataclass(frozen=True)
class Results:
    """The trainings of the experiment: rows, cost and memory, and which of them diverged."""

    folder: Path
    experiment: Experiment

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Students that are reported: first stages are part of those that start from them."""
        stages = {student.init_from.model for _, student in self._forks()}
        return tuple(name for name in self.experiment.students if name not in stages)

    def seeds(self, model: str) -> list[int]:
        """The training seeds of a model."""
        return [seed for name, seed in self.experiment.runs() if name == model]

    @cached_property
    def diverged(self) -> dict[str, list[int]]:
        """Training seeds without a result, by method; a UserError if one has not ended yet."""
        found: dict[str, list[int]] = {}
        for model in self.methods:
            for seed in self.seeds(model):
                if self._evaluation(model, seed, self.experiment.last_step(model)).is_file():
                    continue
                if not any(self._failed(name, seed) for name in self._chain(model)):
                    raise UserError(
                        f"{model} seed {seed} has neither ended nor diverged; run `snakemake "
                        "--cores all --keep-going --configfile config/digits-methods.yaml "
                        "--directory methods`"
                    )
                found.setdefault(model, []).append(seed)
        return found

    @cached_property
    def rows(self) -> list[Row]:
        """One row per model, step and cell, over the training seeds that ended."""
        own = self.experiment
        paths = [
            self._evaluation(model, seed, step)
            for model in ("teacher", *self.methods)
            for seed in self.seeds(model)
            if seed not in self.diverged.get(model, ())
            for step in own.exported_steps(model)
        ]
        return aggregate(read_evaluations(paths))

    def value(self, model: str, cell: Cell, step: int | None = None) -> Summary | None:
        """The distance of a cell, at the last step unless another is named."""
        step = self.experiment.last_step(model) if step is None else step
        for row in self.rows:
            if (row.model, row.cell, row.step) == (model, cell, step):
                return row.metrics[METRIC]
        return None

    def jump(self, model: str, nfe: int, step: int | None = None) -> Summary | None:
        """The same on common levels: consistency sampling if a method jumps to the end alone."""
        gamma = 1.0 if self.experiment.student(model).traits.final_only else 0.0
        return self.value(model, Cell.of("gamma", nfe, None if nfe == 1 else gamma), step)

    @cached_property
    def operations(self) -> dict[str, float]:
        """Of each training alone, as ``ctm plan`` counts them."""
        costs = Costs(open_project(CONFIG), read_speed(SPEED))
        students = self.experiment.students
        jobs = [training(self.experiment, name) for name in students]
        return {name: each.operations for name, each in zip(students, costs.of(jobs), strict=True)}

    def spent(self, model: str, step: int) -> float:
        """Operations from the teacher to a step, those of its first stage included."""
        *before, own = self._chain(model)
        share = step / self.experiment.last_step(own)
        return sum(self.operations[one] for one in before) + share * self.operations[own]

    def memory(self, model: str) -> float:
        """Largest resident memory of its trainings, in GB."""
        files = (self.folder / f"benchmarks/train/{self.experiment.experiment}/{model}").glob("*")
        peaks = [
            float(line.split("\t")[2])
            for file in files
            for line in file.read_text(encoding="utf-8").splitlines()[1:]
            if line.split("\t")[2] != "NA"
        ]
        return max(peaks, default=float("nan")) / 1000

    def _forks(self) -> Iterator[tuple[str, Any]]:
        for name, student in self.experiment.students.items():
            if student.init_from is not None:
                yield name, student

    def _chain(self, model: str) -> list[str]:
        """The trainings behind a model, in order."""
        fork = self.experiment.student(model).init_from
        return [model] if fork is None else [*self._chain(fork.model), model]

    def _evaluation(self, model: str, seed: int, step: int) -> Path:
        files = layout.evaluation(self.experiment.experiment, model, seed, step)
        return self.folder.parent / files["evaluation"]

    def _failed(self, model: str, seed: int) -> bool:
        runs = self.folder.parent / f"runs/{self.experiment.experiment}/{model}/seed-{seed}"
        return any(
            read_record(file).get("exit_code") == Diverged.exit_code
            for file in runs.glob("*/failed.json")
        )


def ranked(results: Results) -> list[str]:
    """Methods by their distance at NFE 1, those without one last."""

    def place(model: str) -> float:
        summary = results.jump(model, 1)
        return float("inf") if summary is None else summary.mean

    return sorted(results.methods, key=place)
