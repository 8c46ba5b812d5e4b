"""An experiment of one resolution and one network, as large as a machine and the hours allow.

All jobs are multiples of one length, found by bisection so that one after the other they fit into
the hours; the cost model of `ctm plan` says how many steps or samples a length is.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import yaml

from ctm_core.config import Dataset, Experiment, validated
from ctm_core.config.asset_listing import load
from ctm_core.config.dag import graph
from ctm_core.config.project import Project
from ctm_core.config.protocols import Protocol
from ctm_core.data.readers.images import Survey
from ctm_core.models.features.efficientnet_lite0 import DIM
from ctm_core.plan import SPEED
from ctm_core.plan.costs import Costs, Estimate
from ctm_core.plan.printout import count as printed
from ctm_core.plan.speeds import Machine, Speed, read_speed
from ctm_core.plan.storage import Shape
from ctm_core.runtime import devices

TEMPLATES = Path(__file__).parent / "templates"
#: Of the hours, what the plan may fill: preparing images, metrics and tables are not in it.
FILLED = 0.8
#: How long the jobs are beside each other.
LENGTHS = {"teacher": 4.0, "ctm": 3.0, "cd": 1.5, "evaluation": 1.5}
#: Steps or samples, at least and at most.
BOUNDS = {"teacher": (20, 10**6), "ctm": (10, 10**6), "cd": (10, 10**6), "evaluation": (32, 10**4)}
#: Steps and samples of the experiment whose jobs are costed, and its batch.
PROBE, BATCH = 1000, 64


class Sizes(NamedTuple):
    """Steps of a training by model, samples of the evaluation, and the images per step."""

    counts: dict[str, int]
    batch: int
    seconds: float  #: of all jobs, one after the other


class Candidate:
    """An experiment of one resolution and one network, as large as the hours allow."""

    def __init__(
        self,
        section: Dataset,
        survey: Survey,
        machine: Machine,
        hours: float,
        side: int,
        width: int,
        blocks: int,
    ) -> None:
        self.section, self.survey, self.machine = section, survey, machine
        self.hours, self.side, self.width, self.blocks = hours, side, width, blocks
        shape = (survey.channels, side, side)
        self.shape = Shape(shape, len(survey.classes), {**survey.counts})
        # As good as any, until the probes have told.
        self.precision, self.weights, self.work = "auto", 0, dict.fromkeys(LENGTHS, 1.0)
        self.why_precision = ""
        self.sizes = Sizes(dict.fromkeys(LENGTHS, PROBE), BATCH, 0.0)
        speed = read_speed(SPEED)
        network = self._costs(speed).network(self._experiment, "teacher")
        self.weights = network.parameters
        forward = network.operations["forward"]
        self.precision, self.why_precision = _precision(machine, speed, forward)
        self.probes = self._estimates(speed)
        self.sizes = Sizes(dict.fromkeys(LENGTHS, 2 * PROBE), BATCH, 0.0)
        twice = self._estimates(speed)
        # What grows with steps or samples; the rest of an evaluation does not.
        self.slopes = [
            (b.seconds - a.seconds) / PROBE for a, b in zip(self.probes, twice, strict=True)
        ]
        self.work = dict.fromkeys(LENGTHS, 0.0)
        for estimate, slope in zip(self.probes, self.slopes, strict=True):
            if (key := _length(estimate)) is not None:
                self.work[key] += slope / max(estimate.gpus, 1)
        self.sizes = self._fit(3600 * FILLED * hours)

    @property
    def seen(self) -> int:
        """Images that pass through the teacher in its training."""
        return self.sizes.counts["teacher"] * self.sizes.batch

    @property
    def suffices(self) -> bool:
        """Whether the teacher sees an image for every weight."""
        return self.seen >= self.weights

    def _fit(self, seconds: float) -> Sizes:
        """The longest jobs that end in time; the shortest allowed if none does."""
        low, high = 0.0, seconds
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._sized(middle).seconds <= seconds else (low, middle)
        counts, _, needed = self._sized(low)
        batch = next((b for b in (256, 128) if counts["teacher"] * BATCH >= 10_000 * b), BATCH)
        rounded = {
            key: _round(
                count if key == "evaluation" else max(BOUNDS[key][0], count * BATCH // batch)
            )
            for key, count in counts.items()
        }
        return Sizes(rounded, batch, needed)

    def _sized(self, unit: float) -> Sizes:
        counts = {
            key: min(most, max(least, int(LENGTHS[key] * unit / self.work[key])))
            for key, (least, most) in BOUNDS.items()
        }
        scaled = []
        for estimate, slope in zip(self.probes, self.slopes, strict=True):
            key = _length(estimate)
            further = 0.0 if key is None else slope * (counts[key] - PROBE)
            scaled.append(replace(estimate, seconds=estimate.seconds + further))
        return Sizes(counts, BATCH, sum(estimate.wall for estimate in scaled))

    def _estimates(self, speed: Speed) -> list[Estimate]:
        costs = self._costs(speed)
        return costs.of(graph(costs.project, "all"))

    def _costs(self, speed: Speed) -> Costs:
        name = self.section.name
        protocol = validated(Protocol, yaml.safe_load(self.text("protocol.yaml")), "ctm new")
        files = {name: f"config/experiments/{name}.yaml"}
        experiments, protocols = {name: self._experiment}, {name: protocol}
        project = Project("ctm new", files, {}, experiments, protocols, load())
        return Costs(project, speed, self.machine.speed, shapes={name: self.shape})

    @property
    def _experiment(self) -> Experiment:
        return validated(Experiment, yaml.safe_load(self.text("experiment.yaml")), "ctm new")

    def text(self, template: str, why_resolution: str = "", command: str = "") -> str:
        """A file of the experiment."""
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        reasons = {"why_resolution": why_resolution, "command": command}
        return Template(text).substitute(self._values() | reasons)

    def _values(self) -> dict[str, Any]:
        survey, machine, side = self.survey, self.machine, self.side
        counts, batch = self.sizes.counts, self.sizes.batch
        count, classes, samples = survey.counts["train"], len(survey.classes), counts["evaluation"]
        sides = [side // 2**level for level in range(_levels(side))]
        values: dict[str, Any] = {
            "name": self.section.name,
            "source": json.dumps(self.section.source, ensure_ascii=False),
            "images": f"{count:,}",
            "classes": f"{classes} classes" if classes > 1 else "one class",
            "hours": f"{self.hours:g}",
            "machine": machine,
            "resolution": side,
            "channels": survey.channels,
            "conditional": str(classes > 1).lower(),
            "threads": machine.threads,
            "resources": _resources(machine, self.hours),
            "weights": printed(self.weights),
            "seen": printed(self.seen),
            "width": self.width,
            "channel_mult": [1] + [2] * (len(sides) - 1),
            "num_blocks": self.blocks,
            "attention": [sides[-1]] if sides[-1] <= 16 else [],
            "batch": batch,
            "micro": "auto" if machine.gpu else "null",
            "scope": "global" if machine.gpu else "microbatch",
            "precision": self.precision,
            "why_precision": self.why_precision,
            "epochs": printed(self.seen / count),
            "sampling_batch": min(256 if side <= 32 else 64, samples),
            "input_size": 64 if side <= 32 else min(224, 2 * side),
            "samples": samples,
            "rank": f" Fewer than {DIM:,} leave covariances without full rank." * (samples < DIM),
            "held_out": "test" if "test" in survey.counts else "others",
            "warmup": counts["teacher"] // 20,
        }
        for model, rate, averaged in (
            ("teacher", _rate(2e-3, 1000, counts["teacher"], 1e-3), 5),
            ("ctm", _rate(4e-3, 160, counts["ctm"], 4e-4), 8),
            ("cd", _rate(4e-3, 200, counts["cd"], 4e-4), 8),
        ):
            steps = counts[model]
            every = (300 if machine.gpu else 30) / (self.work[model] * batch / BATCH)
            values |= {
                f"{model}_steps": steps,
                f"{model}_rate": rate,
                f"{model}_decay": 2 * steps // 5,
                f"{model}_ema": f"{min(0.9999, 1 - averaged / steps):.4f}",
                f"{model}_checkpoint": max(1, min(steps, int(every))),
                f"{model}_preview": -(-steps // 5),
            }
        return values


def _precision(machine: Machine, speed: Speed, forward: float) -> tuple[str, str]:
    """The key `precision` for a network of ``forward`` operations per image, and why."""
    if not machine.gpu:
        if devices.bf16_units() is None:
            return "fp32", "No instructions for bf16 here"
        if speed.rate(forward, "fp32", True) >= speed.rate(forward, "bf16", True):
            return "fp32", "Measured faster than bf16 at this size"
    return "auto", "bf16 where the device has instructions for it"


def _levels(side: int) -> int:
    """How many, down to 8 pixels or an odd side; two at least."""
    levels = 2
    while side // 2 ** (levels - 1) > 8 and not side % 2**levels:
        levels += 1
    return levels


def _length(estimate: Estimate) -> str | None:
    """Which length decides a job's."""
    kind = estimate.job.kind
    return estimate.job.model if kind == "train" else "evaluation" if kind == "evaluate" else None


def _rate(value: float, steps: int, taken: int, least: float) -> str:
    """A learning rate that was good for ``steps``, less for more of them; in YAML's form."""
    return f"{max(least, value * min(1.0, math.sqrt(steps / taken))):.1e}"


def _round(count: int) -> int:
    """Two digits of it."""
    unit = int(10 ** max(0, len(str(count)) - 2))
    return count // unit * unit


def _resources(machine: Machine, hours: float) -> str:
    if not machine.gpu:
        return ""
    share = f"{{gpus: 1, memory_gb: 16, hours: {max(1.0, 2 * hours):g}}}"
    return f"resources: {{training: {share}, evaluation: {share}}}\n"
