r"""Denoising score matching with EDM's weighting (Karras et al. 2022; CTM section 3.2).

.. math::
    L(\theta) = \mathbb E\; \lambda(\sigma)\, \| D_\theta(x_0 + \sigma \xi, \sigma) - x_0 \|^2 / D,
    \qquad \lambda(\sigma) = \frac{\sigma^2 + \sigma_d^2}{(\sigma \sigma_d)^2},

the mean over the D elements of an image. For CTM,
:math:`D_\theta(x, \sigma) = g(x, \sigma, \sigma)`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ctm_core.config import Teacher
from ctm_core.diffusion import schedule
from ctm_core.diffusion.scalings import loss_weight
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.balance import Call, Loss
from ctm_core.training.batches import Batch
from ctm_core.training.objective import Objective

__all__ = ["DsmObjective", "dsm_loss"]

Tensor = torch.Tensor


def dsm_loss(
    model: Trajectory, images: Tensor, sigma: Tensor, noise: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weighted denoising error of each sample.

    Parameters
    ----------
    model
        The denoiser.
    images, noise
        Shape (B, C, H, W): data in [-1, 1] and standard normal noise.
    sigma
        Noise levels, shape (B,).
    labels
        Shape (B,) int64, or None.

    Returns
    -------
    The loss per sample, shape (B,), and the raw network output F, shape (B, C, H, W).
    """
    level = sigma.to(images.dtype).view(-1, 1, 1, 1)
    noisy = images + level * noise
    raw = model.raw(noisy, sigma, None, labels)
    denoised = model.inner(raw, noisy, sigma)
    weight = loss_weight("karras_weight", level, sigma_data=model.sigma_data)
    return (weight * (denoised - images) ** 2).flatten(1).mean(1), raw


class DsmObjective(Objective):
    """EDM's training of a denoiser: ln sigma ~ N(p_mean, p_std^2)."""

    time_s = False
    uses_teacher = False

    def __init__(self, section: Teacher, student: Trajectory) -> None:
        super().__init__()
        self.section = section
        self.student = student

    def calls(self, batch: Batch) -> Iterator[Call]:
        """See :class:`ctm_core.training.objective.Objective`."""
        loss, raw = dsm_loss(
            self.student, batch.images, self._sigma(batch), batch.normal("noise"), batch.labels
        )
        self.evaluations["student"] += len(batch)
        yield Call(raw, (Loss.of("loss", loss.mean(), raw),))

    @torch.no_grad()
    def generated(self, batch: Batch) -> Tensor:
        """The denoised images."""
        sigma = self._sigma(batch)
        noisy = batch.images + sigma.view(-1, 1, 1, 1) * batch.normal("noise")
        self.evaluations["student"] += len(batch)
        return self.student.denoise(noisy, sigma, batch.labels)

    def _sigma(self, batch: Batch) -> Tensor:
        sigma = schedule.lognormal_sigma(
            batch.uniform("sigma"), p_mean=self.section.p_mean, p_std=self.section.p_std
        )
        return sigma.to(batch.images)
