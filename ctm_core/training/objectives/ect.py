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


@torch.no_grad()
def target(
    network: Trajectory, images: Tensor, r: Tensor, noise: Tensor, labels: Tensor | None
) -> Tensor:
    """f(x_r, r) without gradient; x_0 where r = 0."""
    # One call for the whole batch, so that dropout masks are those of the other call.
    live = r > 0
    at = torch.where(live, r, 1.0)
    out = network.g(noised(images, at, noise), at, None, labels)
    return torch.where(live.view(-1, 1, 1, 1), out, images)


class EctObjective(StudentObjective):
    """See the module."""

    def calls(self, batch: Batch) -> Iterator[Call]:
        """See :class:`ctm_core.training.objective.Objective`."""
        noise = batch.normal("noise")
        t, r = (x.to(batch.images, non_blocking=True) for x in self.times(batch))
        with same_masks(noise):
            reference = target(self.student, batch.images, r, noise, batch.labels)
        x_t = noised(batch.images, t, noise)
        raw = self.student.raw(x_t, t, None, batch.labels)
        self.evaluations["student"] += 2 * len(batch)
        distance = length(self.student.inner(raw, x_t, t) - reference, self.number("c"))
        name = str(self.section.settings["weight"])
        weight = pair_weight(name, t, r, self.student.sigma_data)
        yield Call(raw, (Loss.of("ect", (weight * distance).mean(), raw),))

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

    def facts(self, batch: Batch) -> dict[str, Term]:
        """The stage."""
        return {"stage": float(self.stage(batch))}

    @classmethod
    def passes(cls, section: Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """Both ends of each pair."""
        yield Use("student", "train"), torch.ones_like(draws.k)
        yield Use("student", "forward"), torch.ones_like(draws.k)


OBJECTIVE = EctObjective
