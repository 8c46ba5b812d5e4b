"""What each job costs: passes times operations, over the speed of the device.

Counted are a process's start, networks, and the optimiser. What is not: reading files, metrics of
features once they are there, tables and pictures. Of small networks these are a good part of a
job's time, of the paper's they are none worth naming.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ctm_core.config import Experiment
from ctm_core.config.objective_traits import traits
from ctm_core.config.project import Project
from ctm_core.config.protocols import Protocol, ReferenceSplit
from ctm_core.config.student import Released
from ctm_core.plan import network_costs, storage
from ctm_core.plan.dag import Job
from ctm_core.plan.network_costs import Cost
from ctm_core.plan.passes import Number, Passes, expected
from ctm_core.plan.samples import Sampled, sampled
from ctm_core.plan.speeds import DeviceSpeed, Speed
from ctm_core.plan.storage import Shape
from ctm_core.runtime.errors import UserError

__all__ = ["Costs", "Estimate"]


@dataclass(frozen=True)
class Estimate:
    """One job's cost.

    Attributes
    ----------
    passes
        Images through networks, by kind; for a training, by the keys of its record and
        ``perceptual`` and ``features``.
    operations
        Of all networks.
    seconds
        On one device; with several the work is shared.
    gpus, processes
        What the job asks for.
    memory
        Peak bytes of the job; of each process where there are several.
    start
        Seconds before its process has loaded what it needs.
    """

    job: Job
    passes: Mapping[str, Number]
    operations: float = 0.0
    seconds: float = 0.0
    gpus: int = 0
    processes: int = 1
    memory: float = 0.0
    start: float = 0.0

    @property
    def wall(self) -> float:
        """Seconds from its start to its end."""
        return self.start + self.work

    @property
    def work(self) -> float:
        """Seconds once its process has started."""
        return self.seconds / max(self.gpus, 1)


class Costs:
    """Estimates the jobs of a project.

    Parameters
    ----------
    speed
        The measured machine's.
    device
        Another device, if the work is not done on that one.
    root
        Where results stand, for data sets whose size their reader does not know.

    Raises
    ------
    UserError
        If the size of a data set is not known.
    """

    def __init__(
        self,
        project: Project,
        speed: Speed,
        device: DeviceSpeed | None = None,
        root: Path = Path(),
    ) -> None:
        self.project = project
        self.speed = speed
        self.device = device
        self.shapes: dict[str, Shape | None] = {
            name: storage.data_shape(name, root) for name in project.datasets
        }

    def of(self, jobs: Iterable[Job]) -> list[Estimate]:
        """Every job's estimate, in order."""
        return [replace(self._of(job), start=self.speed.start) for job in jobs]

    def _of(self, job: Job) -> Estimate:
        if job.kind == "train":
            return self._training(job)
        if job.kind == "evaluate":
            return self._evaluation(job)
        if job.kind == "reference" and job.name is not None:
            return self._reference(job, self.project.protocols[job.name])
        return Estimate(job, {}, memory=self.speed.process)

    # -- networks --------------------------------------------------------------------------------

    def shape(self, experiment: Experiment) -> Shape:
        """The data set of an experiment."""
        name = experiment.dataset.name
        found = self.shapes.get(name)
        if found is None:
            raise UserError(
                f"{self.project.files[experiment.experiment]}: the size of the data set {name} is "
                "not known before it is prepared; make it by `ctm data` first"
            )
        return found

    def network(self, experiment: Experiment, model: str) -> Cost:
        """The U-Net of a model."""
        shape = self.shape(experiment)
        classes = shape.classes if experiment.conditional else 0
        time_s = model != "teacher" and traits(experiment.models[model].objective).time_s
        return network_costs.denoiser(
            experiment.network, experiment.diffusion, shape.image, classes, time_s
        )

    def judge(self, experiment: Experiment, model: str) -> Cost | None:
        """The discriminator of a model that has one."""
        section = experiment.models.get(model)
        adversarial = None
        if section is not None and not isinstance(section, Released):
            adversarial = section.adversarial
        if adversarial is None:
            return None
        return network_costs.judge(adversarial.discriminator, self.shape(experiment).image)

    def networks(self) -> dict[tuple[str, str], tuple[Cost, Cost | None]]:
        """By experiment and model: the model's network, and its discriminator."""
        return {
            (name, model): (self.network(experiment, model), self.judge(experiment, model))
            for name, experiment in self.project.experiments.items()
            for model, _ in experiment.runs()
        }

    # -- jobs ------------------------------------------------------------------------------------

    def _training(self, job: Job) -> Estimate:
        experiment, model = job.experiment, job.model
        assert experiment is not None
        share, training = experiment.resources.training, experiment.training(model)
        found = expected(experiment, model)
        own, judge = self.network(experiment, model), self.judge(experiment, model)
        teacher = frozen = None
        if model != "teacher":
            student = experiment.student(model)
            if student.perceptual is not None:
                side = student.perceptual.resize
                image = self.shape(experiment).image
                frozen = network_costs.perceptual(student.distance, side, image)
            if student.uses_teacher:
                teacher = self.network(experiment, "teacher")
        kinds = {
            "student": own,
            "target": own,
            "teacher": teacher,
            "features": judge,
            "perceptual": frozen,
        }
        precision = "bf16" if training.precision in ("auto", "bf16") else "fp32"
        operations, seconds = self._priced(found, kinds, precision)
        weights = own.parameters * (1 + storage.averages(experiment, model)) / 2
        updating = found.steps * weights * self.speed.update * max(share.processes, 1)
        if self.device is None or self.device.rate is None:
            seconds += updating / (1.0 if self.device is None else self.device.factor)
        memory = storage.training_memory(experiment, model, own, teacher, judge, frozen)
        return Estimate(
            job,
            found.recorded | found.further,
            operations,
            seconds,
            share.gpus,
            share.processes,
            self.speed.process + memory,
        )

    def _priced(
        self, passes: Passes, kinds: Mapping[str, Cost | None], precision: str
    ) -> tuple[float, float]:
        operations = seconds = 0.0
        for use, number in passes.uses.items():
            cost = kinds[use.network]
            if cost is None or not number.mean:
                continue
            total = number.mean * cost.operations[use.mode]
            operations += total
            seconds += self._seconds(cost, total, precision, use.mode != "forward")
        return operations, seconds

    def _evaluation(self, job: Job) -> Estimate:
        experiment, model = job.experiment, job.model
        assert experiment is not None
        shape, share = self.shape(experiment), experiment.resources.evaluation
        own = self.network(experiment, model)
        found = sampled(experiment, self.project.protocols, model, job.step)
        teacher = None
        if found.trajectory_teacher:
            teacher = self.network(experiment, "teacher")
        passes = _numbers(found)
        total = (found.sampling + found.previews + found.trajectory) * own.operations["forward"]
        operations, seconds = total, self._seconds(own, total, "fp32", False)
        if teacher is not None:
            total = found.trajectory_teacher * teacher.operations["forward"]
            operations, seconds = self._more(operations, seconds, teacher, total)
        if found.likelihood:
            section = experiment.evaluation.likelihood
            assert section is not None
            evaluations = self.speed.likelihood(section.tolerance)
            passes["likelihood"] = Number(found.likelihood * evaluations)
            forward, through = own.operations["forward"], own.operations["through"]
            probes = section.probes or math.prod(shape.image)
            total = passes["likelihood"].mean * (forward + probes * (through - forward))
            operations, seconds = self._more(operations, seconds, own, total, backward=True)
        for name, count in (found.features or {}).items():
            protocol = self.project.protocols[name]
            if (known := network_costs.features(protocol, shape.image)) is not None:
                total = count * known[0].operations["forward"]
                operations, seconds = self._more(
                    operations, seconds, known[0], total, precision=protocol.precision
                )
        memory = storage.evaluation_memory(self.project, job, own, shape, teacher)
        return Estimate(
            job, passes, operations, seconds, share.gpus, memory=self.speed.process + memory
        )

    def _reference(self, job: Job, protocol: Protocol) -> Estimate:
        """Features of the real images; none where their statistics are a file."""
        nothing = Estimate(job, {}, memory=self.speed.process)
        reference = protocol.reference
        if not isinstance(reference, ReferenceSplit):
            return nothing
        shape = self.shapes.get(reference.dataset) or storage.data_shape(reference.dataset)
        if shape is None or (known := network_costs.features(protocol, shape.image)) is None:
            return nothing
        count = shape.counts.get(reference.split, 0)
        total = count * known[0].operations["forward"]
        operations, seconds = self._more(0.0, 0.0, known[0], total, precision=protocol.precision)
        memory = 4 * known[0].parameters + 2 * storage.state_bytes(protocol, known[1], 1)
        return Estimate(
            job,
            {"features": Number(float(count))},
            operations,
            seconds,
            memory=self.speed.process + memory,
        )

    def _more(
        self,
        operations: float,
        seconds: float,
        cost: Cost,
        total: float,
        *,
        precision: str = "fp32",
        backward: bool = False,
    ) -> tuple[float, float]:
        return operations + total, seconds + self._seconds(cost, total, precision, backward)

    def _seconds(self, cost: Cost, total: float, precision: str, backward: bool) -> float:
        return self.speed.seconds(
            cost.operations["forward"],
            total,
            precision=precision,
            backward=backward,
            device=self.device,
        )


def _numbers(found: Sampled) -> dict[str, Number]:
    names = ("sampling", "trajectory", "trajectory_teacher", "previews")
    numbers = {name: Number(float(getattr(found, name))) for name in names}
    features = sum((found.features or {}).values())
    return numbers | {"features": Number(float(features))}
