r"""Easy consistency tuning (Geng et al. 2024): from a diffusion model to a consistency model.

.. math::
   r &= \max\bigl(0,\ t\,(1 - q^{-(\text{stage}+1)}\, n(t))\bigr), \qquad
        n(t) = 1 + \frac{k}{1 + e^{b t}} \\
   x_t &= x_0 + t\,\xi, \quad x_r = x_0 + r\,\xi \\
   \Delta &= f_\theta(x_t, t) - f_{\text{sg}(\theta)}(x_r, r), \quad f(x, 0) = x \\
   L &= w(t, r)\,\bigl(\sqrt{\|\Delta\|^2 + c^2} - c\bigr)

with :math:`f = D`, EDM's denoiser, in training; sampling shifts it (``ect`` in
:mod:`ctm_core.diffusion.scalings`). The norm sums over an image's elements, w is
:math:`1/(t - r)` (``step``) or EDM's :math:`(t^2 + \sigma_d^2)/(t \sigma_d)^2` (``karras``), and
the stage grows with the images seen, so that pairs come closer. There is no teacher in the loss;
the student starts from its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_core.config import Student
from ctm_core.diffusion import schedule
from ctm_core.diffusion.scalings import loss_weight
from ctm_core.diffusion.schedule import Draws
from ctm_core.diffusion.tangent import same_masks
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.balance import Call, Loss
from ctm_core.training.batches import Batch
from ctm_core.training.objective import StudentObjective, Use
from ctm_core.training.terms import Term

TRAITS = {
    "time_s": False,
    "inner": "ect",
    "teacher": False,
    "initial": "teacher",
    "final_only": True,
    "end": 0.0,
    "ctm_loss": False,
    "settings": {
        "p_mean": {
            "default": -1.1, "minimum": -20.0, "maximum": 20.0, "description": "mean of ln t"
        },
        "p_std": {
            "default": 2.0, "minimum": 1e-3, "maximum": 10.0, "description": "its deviation"
        },
        "truncated": {"default": False, "description": "t lies in [sigma_min, sigma_max]"},
        "q": {
            "default": 2.0, "minimum": 1.01, "maximum": 1e6,
            "description": "1 - r/t shrinks by this factor from stage to stage",
        },
        "stage_images": {
            "default": 3_200_000, "minimum": 1.0, "maximum": 1e12, "description": "per stage"
        },
        "ratio_limit": {
            "default": 0.999, "minimum": 0.0, "maximum": 0.99999,
            "description": "of 1 - q^-(stage+1): the gradient grows as 1/(t - r)",
        },
        "k": {
            "default": 8.0, "minimum": 0.0, "maximum": 1e3,
            "description": "pairs of small t are 1 + k/2 times as far apart; 0: all alike",
        },
        "b": {"default": 1.0, "minimum": 0.0, "maximum": 1e3, "description": "up to t = 1/b"},
        "c": {
            "default": 0.0, "minimum": 0.0, "maximum": 1e3,
            "description": "0: norm of the difference; above: its smooth form (0.06, ImageNet)",
        },
        "weight": {
            "default": "step", "choices": ["step", "karras"],
            "description": "1/(t - r), or EDM's weight (ImageNet)",
        },
    },
}  # fmt: skip


def ratio(stage: int, q: float, limit: float) -> float:
    """r/t at large t: 1 - q^-(stage + 1), at most ``limit``."""
    return float(min(1 - q ** -(stage + 1), limit))


def earlier_time(t: Tensor, ratio: float, *, k: float, b: float, floor: float = 0.0) -> Tensor:
    """r of each t, of its shape and dtype."""
    decrement = (1 - ratio) * (1 + k * torch.sigmoid(-b * t))
    return (t - t * decrement).clamp(min=floor)


def length(delta: Tensor, c: float) -> Tensor:
    """sqrt(S + c²) - c of differences (B, C, H, W), S their squares' sum: shape (B,)."""
    total = delta.square().flatten(1).sum(1)
    if c > 0:
        return (total + c**2).sqrt() - c
    # The root has no gradient at 0, where pairs agree to the last digit.
    positive = total > 0
    return torch.where(positive, torch.where(positive, total, 1.0).sqrt(), 0.0)


def pair_weight(name: str, t: Tensor, r: Tensor, sigma_data: float) -> Tensor:
    """w(t, r), shape (B,)."""
    return (
        1 / (t - r) if name == "step" else loss_weight("karras_weight", t, sigma_data=sigma_data)
    )


def noised(images: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_0 + t ξ, for t (B,)."""
    return images + t.view(-1, 1, 1, 1) * noise


class Below(NamedTuple):
    """What answers in place of the student below a time: the first stage of TCM."""

    network: Trajectory
    time: float


class Pair(NamedTuple):
    """One image at two times."""

    raw: Tensor  #: F of the later one, with its graph
    estimate: Tensor  #: f(x_t, t)
    target: Tensor  #: f(x_r, r), without gradient
    distance: Tensor  #: (B,)


def pair(
    student: Trajectory,
    images: Tensor,
    noise: Tensor,
    times: tuple[Tensor, Tensor],
    labels: Tensor | None,
    c: float,
    below: Below | None = None,
) -> Pair:
    """Both ends of each pair; ``times`` are t and r, (B,) each, in the dtype of the images."""
    t, r = times
    with same_masks(images), torch.no_grad():
        # The whole batch at once, so that its dropout masks are those of the other end.
        at = torch.where(r > 0, r, 1.0)
        x_r = noised(images, at, noise)
        target = student.g(x_r, at, None, labels)
        if below is not None:
            answer = below.network.g(x_r, at, None, labels)
            target = torch.where((r < below.time).view(-1, 1, 1, 1), answer, target)
        target = torch.where((r > 0).view(-1, 1, 1, 1), target, images)
    x_t = noised(images, t, noise)
    raw = student.raw(x_t, t, None, labels)
    estimate = student.inner(raw, x_t, t)
    return Pair(raw, estimate, target, length(estimate - target, c))


class EctObjective(StudentObjective):
    """See the module."""

    #: Of the second stage of TCM.
    below: Below | None = None

    def calls(self, batch: Batch) -> Iterator[Call]:
        """See :class:`ctm_core.training.objective.Objective`."""
        t, r = (x.to(batch.images, non_blocking=True) for x in self.times(batch))
        noise, c = batch.normal("noise"), self.number("c")
        made = pair(self.student, batch.images, noise, (t, r), batch.labels, c, self.below)
        self.evaluations["student"] += 2 * len(batch)
        if self.below is not None:
            self.evaluations["second"] += len(batch)
        name = str(self.section.settings["weight"])
        weight = pair_weight(name, t, r, self.student.sigma_data) * self.shares(batch)
        yield Call(made.raw, (Loss.of("ect", (weight * made.distance).mean(), made.raw),))

    def stage(self, batch: Batch) -> int:
        """How often pairs have come closer."""
        return batch.images_seen // int(self.number("stage_images"))

    def times(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """t and r of each sample: float64, on the CPU."""
        bounds = (self.diffusion.sigma_min, self.diffusion.sigma_max)
        t = schedule.lognormal_sigma(
            batch.uniform("t"),
            self.number("p_mean"),
            self.number("p_std"),
            bounds=bounds if self.section.settings["truncated"] else None,
        )
        closeness = ratio(self.stage(batch), self.number("q"), self.number("ratio_limit"))
        return t, earlier_time(t, closeness, k=self.number("k"), b=self.number("b"))

    def shares(self, batch: Batch) -> Tensor | float:
        """Weights of a batch's samples, of mean 1 over the global batch where they are alike."""
        return 1.0

    def facts(self, batch: Batch) -> dict[str, Term]:
        """The stage."""
        return {"stage": float(self.stage(batch))}

    @classmethod
    def passes(cls, section: Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """Both ends of each pair."""
        yield Use("student", "train"), torch.ones_like(draws.k)
        yield Use("student", "forward"), torch.ones_like(draws.k)


OBJECTIVE = EctObjective
