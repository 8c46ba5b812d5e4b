"""What each job costs: passes times operations, over the speed of the device.

The start of a process, networks and the optimiser are counted; reading files, metrics computed
from features, tables and pictures are not. With small networks these take a good part of a job's
time, with the paper's a negligible one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from ctm_core.config import Experiment
from ctm_core.config.dag import Job
from ctm_core.config.project import Project
from ctm_core.config.protocols import Protocol, ReferenceSplit
from ctm_core.plan import network_costs, storage
from ctm_core.plan.network_costs import Cost
from ctm_core.plan.passes import expected, sampled
from ctm_core.plan.speeds import DeviceSpeed, Speed
from ctm_core.plan.storage import Shape
from ctm_core.runtime.errors import UserError


@dataclass(frozen=True)
class Estimate:
    """One job's cost."""

    job: Job
    passes: Mapping[str, float] = field(default_factory=dict)  #: images, by network or purpose
    operations: float = 0.0
    seconds: float = 0.0  #: on one device; with several the work is shared
    gpus: int = 0
    processes: int = 1
    memory: float = 0.0  #: peak bytes of each process
    start: float = 0.0  #: seconds before the process has loaded what it needs

    @property
    def wall(self) -> float:
        """Seconds from its start to its end."""
        return self.start + self.work

    @property
    def work(self) -> float:
        """Seconds once its process has started."""
        return self.seconds / max(self.gpus, 1)


class Work(NamedTuple):
    """Passes through one network: all their operations, and how they are computed."""

    cost: Cost
    operations: float
    precision: str = "fp32"
    backward: bool = False


class Costs:
    """Estimates the jobs of a project.

    Parameters
    ----------
    root
        The folder above ``results``, for data sets whose size is only in their manifest.
    shapes
        Of data sets that need not be looked at.
    """

    def __init__(
        self,
        project: Project,
        speed: Speed,
        device: DeviceSpeed = DeviceSpeed(),  # noqa: B008 (frozen)
        root: Path = Path(),
        shapes: Mapping[str, Shape] | None = None,
    ) -> None:
        self.project = project
        self.speed = speed
        self.device = device
        self.shapes = {
            name: (shapes or {}).get(name)
            or storage.data_shape(name, root, own=bool(section.reader))
            or storage.listed(section, project.assets)
            or storage.survey(section)
            for name, section in project.datasets.items()
        }

    def of(self, jobs: Iterable[Job]) -> list[Estimate]:
        """Every job's estimate, in order."""
        return [
            replace(each, start=self.speed.start, memory=self.speed.process + each.memory)
            for each in map(self._of, jobs)
        ]

    def _of(self, job: Job) -> Estimate:
        if job.kind == "train":
            return self._training(job)
        if job.kind == "evaluate":
            return self._evaluation(job)
        if job.kind == "reference" and job.name is not None:
            return self._reference(job, self.project.protocols[job.name])
        return Estimate(job)

    def shape(self, experiment: Experiment) -> Shape:
        """The data set of an experiment; a UserError if its size is not known."""
        name = experiment.dataset.name
        shape = self.shapes.get(name)
        if shape is None:
            raise UserError(
                f"{self.project.files[experiment.experiment]}: the size of the data set {name} is "
                "not known before it is prepared; make it by `ctm data` first"
            )
        return shape

    def network(self, experiment: Experiment, model: str) -> Cost:
        """The U-Net of a model."""
        shape = self.shape(experiment)
        classes = shape.classes if experiment.conditional else 0
        time_s = model != "teacher" and experiment.models[model].traits.time_s
        return network_costs.denoiser(
            experiment.network, experiment.diffusion, shape.image, classes, time_s
        )

    def discriminator(self, experiment: Experiment, model: str) -> Cost | None:
        """The discriminator of a model that has one."""
        student = experiment.students.get(model)
        if student is None or student.adversarial is None:
            return None
        section = student.adversarial.discriminator
        return network_costs.discriminator(section, self.shape(experiment).image)

    def networks(self) -> dict[tuple[str, str], tuple[Cost, Cost | None]]:
        """By experiment and model: the model's network, and its discriminator."""
        return {
            (name, model): (self.network(experiment, model), self.discriminator(experiment, model))
            for name, experiment in self.project.experiments.items()
            for model, _ in experiment.runs()
        }

    def _training(self, job: Job) -> Estimate:
        experiment, model = job.experiment, job.model
        assert experiment is not None
        share, training = experiment.resources.training, experiment.training(model)
        passes = expected(experiment, model)
        network = self.network(experiment, model)
        discriminator = self.discriminator(experiment, model)
        teacher = perceptual = None
        if (student := experiment.students.get(model)) is not None:
            if student.perceptual is not None:
                image = self.shape(experiment).image
                perceptual = network_costs.perceptual(student.distance, student.perceptual, image)
            if student.uses_teacher:
                teacher = self.network(experiment, "teacher")
        costs = {
            "student": network,
            "target": network,
            "teacher": teacher,
            "second": network if student is None or student.weak_teacher is None else teacher,
            "features": discriminator,
            "perceptual": perceptual,
        }
        precision = "bf16" if training.precision in ("auto", "bf16") else "fp32"
        precisions = dict.fromkeys(costs, precision)
        if training.frozen_precision is not None:
            precisions |= dict.fromkeys(("teacher", "second", "features", "perceptual"), "bf16")
        operations, seconds = self._sums(
            Work(
                cost,
                number * cost.operations[use.mode],
                "fp32" if use.mode == "tangent" else precisions[use.network],
                use.mode not in ("forward", "tangent"),
            )
            for use, number in passes.uses.items()
            if (cost := costs[use.network]) is not None
        )
        if self.device.rate is None:
            weights = network.parameters * (1 + storage.averages(experiment, model)) / 2
            updating = passes.steps * weights * self.speed.update * max(share.processes, 1)
            seconds += updating / self.device.factor
        memory = storage.training_memory(
            experiment, model, network, teacher, discriminator, perceptual
        )
        used = passes.by_network
        return Estimate(job, used, operations, seconds, share.gpus, share.processes, memory)

    def _evaluation(self, job: Job) -> Estimate:
        experiment, model = job.experiment, job.model
        assert experiment is not None
        shape = self.shape(experiment)
        network = self.network(experiment, model)
        images = sampled(experiment, self.project.protocols, model, job.step)
        passes = {
            name: float(getattr(images, name))
            for name in ("sampling", "trajectory", "trajectory_teacher", "previews")
        }
        passes["features"] = float(sum(images.features.values()))
        forward, through = network.operations["forward"], network.operations["through"]
        own = images.sampling + images.previews + images.trajectory
        work = [Work(network, own * forward)]
        teacher = None
        if images.trajectory_teacher:
            teacher = self.network(experiment, "teacher")
            work.append(Work(teacher, images.trajectory_teacher * teacher.operations["forward"]))
        if images.likelihood:
            section = experiment.evaluation.likelihood
            assert section is not None
            passes["likelihood"] = images.likelihood * self.speed.likelihood(section.tolerance)
            probes = section.probes or math.prod(shape.image)
            total = passes["likelihood"] * (forward + probes * (through - forward))
            work.append(Work(network, total, backward=True))
        for name, count in images.features.items():
            protocol = self.project.protocols[name]
            if (known := network_costs.features(protocol, shape.image)) is not None:
                total = count * known[0].operations["forward"]
                work.append(Work(known[0], total, protocol.precision))
        memory = storage.evaluation_memory(self.project, job, network, shape, teacher)
        gpus = experiment.resources.evaluation.gpus
        return Estimate(job, passes, *self._sums(work), gpus, memory=memory)

    def _reference(self, job: Job, protocol: Protocol) -> Estimate:
        """Features of the real images; none where their statistics are a file."""
        reference = protocol.reference
        if not isinstance(reference, ReferenceSplit):
            return Estimate(job)
        name = reference.dataset
        shape = self.shapes[name] if name in self.shapes else storage.data_shape(name)
        if shape is None or (known := network_costs.features(protocol, shape.image)) is None:
            return Estimate(job)
        cost, dimensions = known
        count = shape.counts.get(reference.split, 0)
        work = Work(cost, count * cost.operations["forward"], protocol.precision)
        memory = 4 * cost.parameters + 2 * storage.state_bytes(protocol, dimensions, 1)
        return Estimate(job, {"features": float(count)}, *self._sums([work]), memory=memory)

    def _sums(self, work: Iterable[Work]) -> tuple[float, float]:
        operations = seconds = 0.0
        for cost, total, precision, backward in work:
            operations += total
            each = cost.operations["forward"]
            seconds += self.speed.seconds(each, total, precision, backward, self.device)
        return operations, seconds
