"""What a folder of results holds to be compared: scores of every cell, and losses on the way."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ctm_core.config.sampling_grid import ADAPTIVE, Cell
from ctm_core.evaluation.metrics import names
from ctm_core.report.figures.figure_inputs import read_trainings
from ctm_core.report.headline import cell_name
from ctm_core.report.scores import cell_order, model_order, read_evaluations, read_runs
from ctm_core.training.training_file import read_training

#: Ends of the windows over which a loss term is averaged, as shares of the training.
WINDOWS = (0.25, 0.5, 1.0)
NO_CELL = Cell("", 0, None)


class Quantity(NamedTuple):
    """What is compared: the main metric of a cell, or a loss term of the steps up to ``step``."""

    model: str
    step: int
    cell: Cell  #: :data:`NO_CELL` of a loss term
    protocol: str  #: empty of a loss term
    metric: str

    @property
    def of_training(self) -> bool:
        """Whether it is a loss term."""
        return self.cell == NO_CELL

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: the teacher first, the way before the end."""
        place = cell_order(self.cell)
        return *model_order(self.model), self.protocol, self.step, *place, self.metric

    @property
    def name(self) -> str:
        """What it is, beside model and step."""
        if self.of_training:
            return f"loss term {self.metric}"
        return cell_name(self.cell, self.model == "teacher")


#: Values by training seed and sampling seed, the latter empty for loss terms.
Values = Mapping[int, Mapping[str, float]]


@dataclass
class Observations:
    """What was measured of one experiment."""

    experiment: str
    fingerprint: str = ""
    code_versions: set[str] = field(default_factory=set)
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)  #: of each model's configuration
    precisions: dict[str, str] = field(default_factory=dict)
    last_steps: dict[str, int] = field(default_factory=dict)
    values: dict[Quantity, dict[int, dict[str, float]]] = field(default_factory=dict)

    def add(self, quantity: Quantity, train_seed: int, sample_seed: str, value: float) -> None:
        """Add one value."""
        self.values.setdefault(quantity, {}).setdefault(train_seed, {})[sample_seed] = value


def observe(results: Path) -> dict[str, Observations]:
    """The experiments of ``results/runs.csv``.

    Raises
    ------
    UserError
        If the table, or an evaluation that it lists, is missing or damaged.
    """
    evaluations = read_evaluations(read_runs(results))
    metrics: dict[tuple[str, str], set[str]] = defaultdict(set)
    for evaluation in evaluations:
        for score in evaluation.rows:
            metrics[evaluation.experiment, score.protocol].add(score.metric)
    observed: dict[str, Observations] = {}
    for evaluation in evaluations:
        name, model, seed = evaluation.experiment, evaluation.model, evaluation.train_seed
        own = observed.setdefault(name, Observations(name, evaluation.dataset_fingerprint or ""))
        own.code_versions.add(evaluation.code_version)
        own.protocols |= evaluation.protocols
        own.hashes[model] = evaluation.train_hash
        own.last_steps[model] = max(own.last_steps.get(model, 0), evaluation.step)
        for score in evaluation.rows:
            if score.metric == names.in_order(metrics[name, score.protocol])[0]:
                cell = Cell(ADAPTIVE, 0, None) if score.sampler == ADAPTIVE else score.cell
                place = Quantity(model, evaluation.step, cell, score.protocol, score.metric)
                own.add(place, seed, str(score.sample_seed), score.value)
        curve = results / name / model / f"seed-{seed}" / "training.jsonl"
        if curve.is_file():
            _add_losses(own, model, seed, curve)
    return observed


def _add_losses(own: Observations, model: str, seed: int, curve: Path) -> None:
    record = read_training(curve.with_name("training.json"))
    own.precisions[model], own.last_steps[model] = record.precision, record.steps
    training = read_trainings([curve])[own.experiment][model, seed]
    began = 0
    for share in WINDOWS:
        end = round(share * record.steps)
        for term, values in training.curve.items():
            window = values[(values.index > began) & (values.index <= end)]
            if len(window) and math.isfinite(mean := float(window.mean())):
                own.add(Quantity(model, end, NO_CELL, "", term), seed, "", mean)
        began = end
