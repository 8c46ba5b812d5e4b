r"""Denoising score matching with EDM's weighting (Karras et al. 2022; CTM section 3.2).

.. math::
    L(\theta) = \mathbb E\; \lambda(\sigma)\, \| D_\theta(x_0 + \sigma \xi, \sigma) - x_0 \|^2 / D,
    \qquad \lambda(\sigma) = \frac{\sigma^2 + \sigma_d^2}{(\sigma \sigma_d)^2},

the mean over the D elements of each image. For CTM,
:math:`D_\theta(x, \sigma) = g(x, \sigma, \sigma)`.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ctm_core.config import Teacher
from ctm_core.diffusion import schedule
from ctm_core.diffusion.scalings import loss_weight
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training import augmentation
from ctm_core.training.balance import Call, Loss
from ctm_core.training.batches import Batch
from ctm_core.training.objective import Objective


def dsm_loss(
    model: Trajectory,
    images: Tensor,
    sigma: Tensor,
    noise: Tensor,
    labels: Tensor | None,
    augment_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted denoising error of each sample.

    Parameters
    ----------
    images, noise
        Shape (B, C, H, W): data in [-1, 1] and standard normal noise.
    sigma, labels
        Shape (B,): noise levels, and classes (int64) or None.
    augment_labels
        Shape (B, augment_dim): what was done to the images; None: nothing.

    Returns
    -------
    The loss per sample, shape (B,), and the raw network output F, shape (B, C, H, W).
    """
    level = sigma.to(images.dtype).view(-1, 1, 1, 1)
    noisy = images + level * noise
    raw = model.raw(noisy, sigma, None, labels, augment_labels)
    denoised = model.inner(raw, noisy, sigma)
    weight = loss_weight("karras_weight", level, sigma_data=model.sigma_data)
    return (weight * (denoised - images) ** 2).flatten(1).mean(1), raw


class DsmObjective(Objective):
    """EDM's training of a denoiser: ln sigma ~ N(p_mean, p_std^2), with optional augmentation.

    ``flip`` says whether mirrored images belong to the data set; if not, augmentation does not
    flip. If so, flips are part of the augmentation, and of the network's labels.
    """

    def __init__(self, section: Teacher, student: Trajectory, *, flip: bool = True) -> None:
        super().__init__()
        self.section = section
        self.student = student
        self.flips = section.augment > 0
        self.augmentation = augmentation.EDM._replace(p=section.augment)
        if not flip:
            self.augmentation = self.augmentation._replace(xflip=0.0, yflip=0.0)

    def calls(self, batch: Batch) -> Iterator[Call]:
        """See :class:`ctm_core.training.objective.Objective`."""
        images, augment_labels = self._augmented(batch)
        u, noise = batch.uniform("sigma"), batch.normal("noise")
        sigma = schedule.lognormal_sigma(u, self.section.p_mean, self.section.p_std)
        sigma = sigma.to(images, non_blocking=True)
        loss, raw = dsm_loss(self.student, images, sigma, noise, batch.labels, augment_labels)
        self.evaluations["student"] += len(batch)
        yield Call(raw, (Loss.of("loss", loss.mean(), raw),))

    def _augmented(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if self.section.augment == 0:
            return batch.images, None
        draws = augmentation.draw(batch.uniform)
        parameters = augmentation.activate(draws, self.augmentation)
        return augmentation.augment(batch.images, parameters, self.augmentation)
