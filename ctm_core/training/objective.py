"""The interface of training objectives: from a batch to weighted gradients of the student.

An objective turns a batch into *calls* of the student, each with its losses
(:mod:`ctm_core.training.balance`); the base class weights them and fills the gradient.

Objectives do not know how a batch is split over micro-batches and processes: draws are taken by
sample index from counter-based streams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ctm_core.config import Diffusion, Student
from ctm_core.diffusion.schedule import Draws
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training import balance
from ctm_core.training.adversary import Adversary
from ctm_core.training.batches import Batch
from ctm_core.training.distance import Distance
from ctm_core.training.terms import Term

#: What follows a forward pass: nothing, the gradient to the input once or for each of two losses,
#: or that to the weights; ``tangent``: a derivative along a path comes with it.
Mode = Literal["forward", "through", "twice", "train", "tangent"]


class Use(NamedTuple):
    """A network and what is done with it."""

    network: str  #: teacher, student, target, perceptual or features
    mode: Mode


class Objective(ABC):
    """What the training loop asks of an objective."""

    student: Trajectory
    adversary: Adversary | None = None
    #: Whether the objective mirrors images itself, so that batches must not.
    flips: bool = False
    #: Consecutive samples that share a draw.
    group: int = 1
    #: Whether the student's derivative in forward mode is taken.
    tangents: bool = False
    #: Modules of its own, on the device, which learn beside the student and are not exported.
    modules: Mapping[str, torch.nn.Module] = MappingProxyType({})

    def __init__(self) -> None:
        #: Evaluations of each network so far, counted in images: teacher, student, target, ….
        self.evaluations: dict[str, int] = {"student": 0}

    @abstractmethod
    def calls(self, batch: Batch) -> Iterator[balance.Call]:
        """Run the student and yield its calls, the reference loss first.

        A call's graph is needed until the next one is asked for, and no longer.
        """

    def generated(self, batch: Batch) -> Tensor:
        """The images of :meth:`calls` that a discriminator sees, without gradient."""
        raise NotImplementedError(f"{type(self).__name__} generates no images")

    # -- what it will take, before anything runs ------------------------------------------------

    @classmethod
    def passes(cls, section: Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """Forward passes of :meth:`calls` per sample, by its draw, for ``ctm plan``.

        Yields a network and counts (D,) for D draws of k, i and j; those of equal use are summed.
        By default one call of the student, and two passes of the teacher, if any, for each step.
        """
        yield Use("student", "train"), torch.ones_like(draws.k)
        if section.traits.teacher:
            yield Use("teacher", "forward"), 2 * draws.k

    @classmethod
    def generated_passes(cls, section: Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """The same of :meth:`generated`: by default one call of the student."""
        yield Use("student", "forward"), torch.ones_like(draws.k)

    # -- the record ------------------------------------------------------------------------------

    def facts(self, batch: Batch) -> dict[str, Term]:
        """Numbers worth recording beside the losses, such as k."""
        return {}

    def frozen(self) -> list[torch.nn.Module]:
        """Networks that training reads and never changes."""
        return []

    # -- gradients -------------------------------------------------------------------------------

    def gradients_at_w(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of the reference and of every weighted loss at the student's output weight.

        Averaged over micro-batches and processes, they make weights that hold for a whole global
        batch, which :meth:`backward` takes with the same draws.
        """
        gradients: dict[str, Tensor] = {}
        for call in self.calls(batch):
            gradients |= self.at_w(call)
        return gradients

    def rules(self) -> dict[str, balance.Rule]:
        """How losses are weighted, by name."""
        return {}

    def backward(
        self,
        batch: Batch,
        share: float,
        weights: Mapping[str, Tensor | float] | None = None,
        average: Callable[[list[Tensor]], None] | None = None,
    ) -> dict[str, Term]:
        """Add ``share`` times the gradient of the batch's loss to the student's ``.grad``.

        Loss weights are given, or else made of this batch's gradients at w, of which ``average``
        then takes the mean over processes. Returns loss terms and weights by name, for the record
        and the NaN guard.
        """
        terms: dict[str, Term] = {}
        used: dict[str, Tensor | float] = {}
        reference: Tensor | None = None
        loss: Tensor | float = 0.0
        for call in self.calls(batch):
            if weights is None:
                gradients = self.at_w(call)
                if average is not None:
                    average(list(gradients.values()))
                first = call.losses[0].name
                reference = gradients.get(first) if reference is None else reference
                rules = {x.name: x.rule for x in call.losses if x.rule is not None}
                used |= balance.weigh(rules, gradients, reference)
            else:
                used |= {x.name: weights[x.name] for x in call.losses if x.name in weights}
            balance.pull_back(call, used, share)
            for part in call.losses:
                terms[part.name] = part.value
                loss = loss + used.get(part.name, 1.0) * part.value
        terms |= {f"lambda_{name}": weight for name, weight in used.items()}
        return {"loss": loss, **terms, **self.facts(batch)}

    def at_w(self, call: balance.Call) -> dict[str, Tensor]:
        """Gradients at w of those losses of a call whose norms are compared."""
        if not any(rule.adaptive for rule in self.rules().values()):
            return {}
        w = self.student.output_weight
        compared = [x for x in call.losses if x.rule is None or x.rule.adaptive]
        return {x.name: balance.at_weight(call, x, w) for x in compared}


@dataclass(kw_only=True, eq=False)
class StudentObjective(Objective):
    """An objective of the folder ``objectives``, with all that one is given."""

    section: Student
    diffusion: Diffusion
    #: The network that learns.
    student: Trajectory
    #: The stop-gradient network, an EMA of the student, whose parameters are frozen; None if the
    #: objective has no key target_ema.
    target: Trajectory | None = None
    #: The frozen denoiser; None if the objective evaluates none.
    teacher: Trajectory | None = None
    #: d of CTM's loss.
    distance: Distance
    #: Adds the adversarial loss, if any.
    adversary: Adversary | None = None
    #: The frozen network that the trait ``second`` asks for.
    second: Trajectory | None = None
    evaluations: dict[str, int] = field(default_factory=lambda: {"student": 0}, init=False)

    def __post_init__(self) -> None:
        self.group = self.section.group
        self.tangents = bool(self.section.traits.jvp)
        for name in ("teacher", "target", "second"):
            if getattr(self, name) is not None:
                self.evaluations[name] = 0

    def number(self, setting: str) -> float:
        """A numeric setting of the objective's own."""
        return float(self.section.settings[setting])

    def frozen(self) -> list[torch.nn.Module]:
        """Teacher, second network, distance and the adversary's feature networks."""
        networks: list[torch.nn.Module | None] = [self.distance, self.teacher, self.second]
        if self.adversary is not None:
            networks += self.adversary.feature_networks()
        return [network for network in networks if network is not None]
