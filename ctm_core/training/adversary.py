r"""The adversarial term (CTM section 3.3), which any objective can be given: losses and adversary.

With the discriminator's logits :math:`d(x)`, several per image, real images
:math:`x_0` and generated ones :math:`\hat x = G_{ema}(G_\theta(x_t, t, s), s, \sigma_\text{min})`,
the released code has the hinge (Lim & Ye, 2017),

.. math::
    L_D &= \overline{\max(0, 1 - d(x_0))} + \overline{\max(0, 1 + d(\hat x))} \\
    L_G &= -\overline{d(\hat x)}

and the paper prints logarithms, with the probability :math:`p = 1/(1 + e^{-d})`,

.. math::
    L_D = -\overline{\log p(x_0)} - \overline{\log(1 - p(\hat x))},\qquad
    L_G = \overline{\log(1 - p(\hat x))}

The bar is the mean over each tensor of logits and then over the tensors, whatever their sizes. At
d = 0 the hinge gives 2 and 0.

Even steps update the generator, with :math:`\lambda_\text{gan} L_G` added to its other losses; odd
steps update the discriminator's heads alone. The student's EMAs are updated on even steps only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core import config
from ctm_core.training import optimizers
from ctm_core.training.balance import Rule
from ctm_core.training.batches import Batch
from ctm_core.training.discriminator import Discriminator
from ctm_core.training.discriminator.projected_layers import SpectralConv2d
from ctm_core.training.distance import at_least_single

Logits = Tensor | Sequence[Tensor]

#: Clip of lambda_gan in the released code.
LOW, HIGH = 0.01, 10.0


def hinge_discriminator(real: Logits, fake: Logits) -> Tensor:
    """L_D, shape (), of logits on real and on generated images: tensors of any shapes."""
    on_real = _mean(real, lambda x: functional.relu(1 - x))
    return on_real + _mean(fake, lambda x: functional.relu(1 + x))


def hinge_generator(fake: Logits) -> Tensor:
    """L_G of logits on generated images."""
    return -_mean(fake, lambda x: x)


def log_discriminator(real: Logits, fake: Logits) -> Tensor:
    """The printed L_D."""
    return _mean(real, lambda x: functional.softplus(-x)) + _mean(fake, functional.softplus)


def log_generator(fake: Logits) -> Tensor:
    """The printed L_G, log(1 - p), unbounded below."""
    return -_mean(fake, functional.softplus)


def _mean(logits: Logits, of: Callable[[Tensor], Tensor]) -> Tensor:
    several = [logits] if isinstance(logits, Tensor) else list(logits)
    return torch.stack([of(at_least_single(x)).mean() for x in several]).mean()


LOSSES = {
    "hinge": (hinge_generator, hinge_discriminator),
    "log": (log_generator, log_discriminator),
}


class Adversary:
    """A discriminator that is trained alongside the student; ``loss`` is ``hinge`` or ``log``.

    ``kernel`` is the training section's. With ``fused`` real and generated images also share one
    normalised copy of each weight, whose gradient is then rounded once instead of twice.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        section: config.Adversarial,
        loss: str = "hinge",
        kernel: str = "foreach",
    ) -> None:
        self.discriminator = discriminator.train()
        self.section = section
        #: How the generator's loss is weighted (section 2.5 of the released behaviour).
        self.rule = Rule(section.discriminator_weight, low=LOW, high=HIGH)
        self._generator_loss, self._discriminator_loss = LOSSES[loss]
        self._spectral = [m for m in discriminator.modules() if isinstance(m, SpectralConv2d)]
        for layer in self._spectral:
            layer.eval()  # u and v move in `advance` alone
        self._shares = kernel == "fused"
        self.advance()
        self.optimizer = optimizers.radam(
            "fused" if self._shares else "foreach",
            discriminator.trained(),
            lr=section.learning_rate,
            betas=section.betas,
        )

    def feature_networks(self) -> list[nn.Module]:
        """The pretrained networks, which are frozen."""
        trunks = (branch.backbone.trunk for branch in self.discriminator.branches().values())
        return [trunk for trunk in trunks if trunk is not None]

    def generator_loss(self, fake: Tensor, batch: Batch) -> Tensor:
        """L_G of generated images (B, C, H, W) in [-1, 1]; gradient passes to them alone."""
        with self._frozen():
            return self._generator_loss(self._logits(fake, batch, "generator"))

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L_D, and what is logged: the loss and the mean logits on real and generated images.

        Real and generated images are augmented by different draws, as in the released commands,
        unless ``share_augmentation`` is set.
        """
        shared = "real" if self.section.share_augmentation else "generated"
        with self._normalised_once() if self._shares else contextlib.nullcontext():
            on_real = self._logits(real, batch, "real")
            on_fake = self._logits(fake, batch, shared)
        loss = self._discriminator_loss(on_real, on_fake)
        terms = {
            "d_loss": loss.detach(),
            "d_real": _mean(on_real, lambda x: x).detach(),
            "d_fake": _mean(on_fake, lambda x: x).detach(),
        }
        return loss, terms

    def _logits(self, images: Tensor, batch: Batch, stream: str) -> Tensor:
        size = (images.shape[2], images.shape[3])
        draws = self.discriminator.draw(batch.uniform, size, f"diffaugment/{stream}")
        logits: Tensor = self.discriminator(images, draws)
        return logits

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        """No gradient to the heads, so that their inputs are not kept for it."""
        trained = nn.ParameterList(self.discriminator.trained()).requires_grad_(False)
        try:
            yield
        finally:
            trained.requires_grad_(True)

    @contextlib.contextmanager
    def _normalised_once(self) -> Iterator[None]:
        """Each weight is divided by its singular value once for all forward passes inside."""
        for layer in self._spectral:
            layer.shared = layer.normalised_weight()
        try:
            yield
        finally:
            for layer in self._spectral:
                layer.shared = None

    def advance(self) -> None:
        """One power iteration of the heads' spectral norms, after each of their steps."""
        # Not per forward pass: the number of micro-batches and processes makes no difference.
        for layer in self._spectral:
            layer.power_iteration()

    def hashes(self) -> dict[str, str | None]:
        """SHA-256 of the weights of each feature network, None for random ones."""
        branches = self.discriminator.branches().items()
        return {f"features {name}": branch.backbone.weights_sha256 for name, branch in branches}

    def statistics(self) -> list[Tensor]:
        """Copies of what a forward pass changes: the running statistics of the batch norms."""
        return [value.clone() for value in self.discriminator.buffers()]

    @torch.no_grad()
    def restore_statistics(self, values: Sequence[Tensor]) -> None:
        """Restore what :meth:`statistics` returned."""
        for value, before in zip(self.discriminator.buffers(), values, strict=True):
            value.copy_(before)


def build(section: config.Student, seed: int, device: torch.device) -> Adversary | None:
    """The adversary of a student's configuration, if any; its random parts follow the seed."""
    adversarial = section.adversarial
    if adversarial is None:
        return None
    discriminator = Discriminator(adversarial.discriminator, seed).to(device)
    kernel = section.training.kernel
    return Adversary(discriminator, adversarial, section.adversarial_loss, kernel)
