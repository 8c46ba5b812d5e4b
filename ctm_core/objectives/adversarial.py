r"""The adversarial term's losses (CTM section 3.3).

With the discriminator's logits :math:`d(x)`, of which there are many for an image, real images
:math:`x_0` and generated ones :math:`\hat x = G_{ema}(G_\theta(x_t, t, s), s, \sigma_\text{min})`:

.. math::
    \text{hinge:}\quad L_D &= \overline{\max(0, 1 - d(x_0))} + \overline{\max(0, 1 + d(\hat x))},
        & L_G &= -\overline{d(\hat x)} \\
    \text{log:}\quad L_D &= -\overline{\log p(x_0)} - \overline{\log(1 - p(\hat x))},
        & L_G &= \overline{\log(1 - p(\hat x))}, \qquad p = 1/(1 + e^{-d})

The bar is the mean over each tensor of logits and then over the tensors, whatever their sizes. The
released code has the hinge (Lim & Ye 2017), the paper prints the logarithms (Goodfellow et al.
2014, the generator minimising what the discriminator maximises). At d = 0 the hinge losses are 2
and 0, the others 2 log 2 and -log 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["hinge_discriminator", "hinge_generator", "log_discriminator", "log_generator"]

Logits = Tensor | Sequence[Tensor]


def hinge_discriminator(real: Logits, fake: Logits) -> Tensor:
    """L_D of logits on real and on generated images.

    Parameters
    ----------
    real, fake
        A tensor of logits or several, of any shapes.

    Returns
    -------
    Tensor, shape (), float32 or float64
    """
    on_real = [functional.relu(1 - logits).mean() for logits in _several(real)]
    on_fake = [functional.relu(1 + logits).mean() for logits in _several(fake)]
    return torch.stack(on_real).mean() + torch.stack(on_fake).mean()


def hinge_generator(fake: Logits) -> Tensor:
    """L_G of logits on generated images; see :func:`hinge_discriminator`."""
    return -torch.stack([logits.mean() for logits in _several(fake)]).mean()


def log_discriminator(real: Logits, fake: Logits) -> Tensor:
    """L_D by logarithms; see :func:`hinge_discriminator`."""
    on_real = [functional.softplus(-logits).mean() for logits in _several(real)]
    on_fake = [functional.softplus(logits).mean() for logits in _several(fake)]
    return torch.stack(on_real).mean() + torch.stack(on_fake).mean()


def log_generator(fake: Logits) -> Tensor:
    """L_G by logarithms, as printed: it saturates where the discriminator is sure."""
    return -torch.stack([functional.softplus(logits).mean() for logits in _several(fake)]).mean()


def _several(logits: Logits) -> list[Tensor]:
    several = [logits] if isinstance(logits, Tensor) else list(logits)
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in several]
