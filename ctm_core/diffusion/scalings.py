r"""Coefficients around a raw network, and loss weights: functions of t and s alone.

*Inner* coefficients make :math:`g = c_\text{skip}\,x + c_\text{out}\,F`; with the data's standard
deviation :math:`\sigma_d`:

=======  ============================================  ==========================================
name     :math:`c_\text{skip}(t)`                      :math:`c_\text{out}(t)`
=======  ============================================  ==========================================
``edm``  :math:`\sigma_d^2/(t^2+\sigma_d^2)`           :math:`t\,\sigma_d/\sqrt{t^2+\sigma_d^2}`
``cm``   :math:`\sigma_d^2/((t-\sigma_\min)^2`         :math:`(t-\sigma_\min)\,\sigma_d/`
         :math:`+\sigma_d^2)`                          :math:`\sqrt{t^2+\sigma_d^2}`
``no``   0                                             1
native   :math:`1/(1 + t)`                             :math:`-t/(1 + t)`
``ect``  ``edm`` in training; ``cm`` with sigma_min = 0.003 where a model is sampled
=======  ============================================  ==========================================

``edm`` is Karras et al. (2022, table 1) and CTM's; ``cm`` makes the network the identity at
sigma_min (Song et al. 2023, appendix C), which consistency models need. In ``native`` the network
is MeanFlow's average velocity (Geng et al. 2025) in the linear time :math:`\tau = t/(1 + t)` of
:math:`z = (1-\tau)\,x`, whose input is z and whose conditions are :math:`\tau` and
:math:`\tau - \tau_s`: it starts from random weights, not from a denoiser's.

*Outer* coefficients make the jump :math:`G = c_\text{skip}\,x + (1 - s/t)\,g`:

========================  ==================================================================
name                      :math:`c_\text{skip}(t, s)`
========================  ==================================================================
``euler``                 :math:`s/t` (CTM, section 3.1)
``variance``              :math:`v = \sqrt{((s-\sigma_\min)^2+\sigma_d^2)\,/\,`
                          :math:`((t-\sigma_\min)^2+\sigma_d^2)}`
``euler_variance_mixed``  :math:`(s + v)/(t + 1)`
========================  ==================================================================

CTM's models use ``edm`` and ``euler``; the others are the alternatives of its released code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_core.runtime.errors import UserError

INNER = ("edm", "cm", "no", "native", "ect")
#: sigma_min of ``ect`` in eval mode (Geng et al. 2024, released code).
ECT_SHIFT = 0.003
OUTER = ("euler", "variance", "euler_variance_mixed")


class Scalings(NamedTuple):
    """EDM's preconditioning coefficients at some t; tensors of the shape of t."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Coefficients(NamedTuple):
    """Factors of the input and of the network's output; tensors of one shape."""

    c_skip: Tensor
    c_out: Tensor


def scalings(t: Tensor, sigma_data: float = 0.5) -> Scalings:
    r"""EDM's coefficients at times ``t`` > 0, in the dtype of ``t``.

    The inner ``edm`` pair, :math:`c_\text{in} = 1/\sqrt{t^2 + \sigma_d^2}` and
    :math:`c_\text{noise} = \tfrac14 \ln t` (Karras et al. 2022, table 1).
    """
    total = t**2 + sigma_data**2
    root = total.sqrt()
    return Scalings(sigma_data**2 / total, t * sigma_data / root, 1 / root, t.log() / 4)


class Conditions(NamedTuple):
    """What a raw network is given: c_in for the image, and the conditions of t and of s."""

    image: Tensor
    t: Tensor
    s: Tensor


def conditions(name: str, t: Tensor, s: Tensor, sigma_data: float = 0.5) -> Conditions:
    """The network's inputs at times ``t`` and ``s``, by the name of a parametrisation."""
    if name == "native":
        linear = t / (1 + t)
        return Conditions(1 / (1 + t), linear, linear - s / (1 + s))
    at = scalings(t, sigma_data)
    return Conditions(at.c_in, at.c_noise, s.log() / 4)


def path_slopes(name: str, t: Tensor, sigma_data: float = 0.5) -> Conditions:
    """Derivatives of :func:`conditions` in ln t; the image's is to be multiplied by F_v.

    F_v is the raw output whose flow is followed: :mod:`ctm_core.diffusion.tangent`.
    """
    if name == "native":
        slope = t / (1 + t) ** 2
        return Conditions(slope, slope, slope)
    quarter = torch.full_like(t, 0.25)
    slope = -t * sigma_data / (t**2 + sigma_data**2)
    return Conditions(slope, quarter, torch.zeros_like(t))


def inner_coefficients(
    name: str,
    t: Tensor,
    *,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    training: bool = False,
) -> Coefficients:
    """Coefficients of g, by a name of :data:`INNER`, at positive times ``t`` of any shape."""
    if name == "ect":
        name, sigma_min = "edm" if training else "cm", ECT_SHIFT
    if name == "edm":
        return Coefficients(*scalings(t, sigma_data)[:2])
    if name == "cm":
        variance = sigma_data**2
        above = t - sigma_min
        c_out = above * sigma_data / (t**2 + variance).sqrt()
        return Coefficients(variance / (above**2 + variance), c_out)
    if name == "no":
        return Coefficients(torch.zeros_like(t), torch.ones_like(t))
    if name == "native":
        return Coefficients(1 / (1 + t), -t / (1 + t))
    raise UserError(f"unknown inner parametrisation {name!r}; allowed: {', '.join(INNER)}")


def outer_coefficients(
    name: str, t: Tensor, s: Tensor, *, sigma_data: float = 0.5, sigma_min: float = 0.002
) -> Coefficients:
    """Coefficients of G from ``t`` to ``s`` ≤ t, by a name of :data:`OUTER`.

    Each is (1, 0) at s = t, so that G(x, t, t) = x. ``t`` and ``s`` broadcast.
    """
    ratio = s / t
    if name == "euler":
        return Coefficients(ratio, 1 - ratio)
    if name not in OUTER:
        raise UserError(f"unknown outer parametrisation {name!r}; allowed: {', '.join(OUTER)}")
    variance = sigma_data**2
    spread = (((s - sigma_min) ** 2 + variance) / ((t - sigma_min) ** 2 + variance)).sqrt()
    return Coefficients(spread if name == "variance" else (s + spread) / (t + 1), 1 - ratio)


#: Loss weights by the released code's names, as functions of (t, s, sigma_data).
WEIGHTS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "uniform": lambda t, s, sd: torch.ones_like(t),
    "snr": lambda t, s, sd: t**-2,
    "snr+1": lambda t, s, sd: t**-2 + 1,
    "truncated-snr": lambda t, s, sd: (t**-2).clamp(min=1),
    "karras": lambda t, s, sd: t**-2 + sd**-2,
    "karras_weight": lambda t, s, sd: (t**2 + sd**2) / (t * sd) ** 2,
    "sq-t-inverse": lambda t, s, sd: t**0.5,
    "uniform_g": lambda t, s, sd: 1 / (1 - s / t),
}


def wide(value: Tensor, x: Tensor) -> Tensor:
    """One number per sample, of shape (B,), as a factor of images ``x`` in their dtype."""
    return value.to(x).view(-1, 1, 1, 1)


def loss_weight(
    name: str, t: Tensor, s: Tensor | None = None, *, sigma_data: float = 0.5
) -> Tensor:
    r"""Weight of a sample's loss at time ``t``.

    With the signal-to-noise ratio :math:`\mathrm{snr} = t^{-2}`:

    =================  ==========================================================================
    ``uniform``        1 (CTM's consistency loss)
    ``snr``            :math:`\mathrm{snr}`
    ``snr+1``          :math:`\mathrm{snr} + 1`
    ``truncated-snr``  :math:`\max(\mathrm{snr}, 1)`
    ``karras``         :math:`\mathrm{snr} + \sigma_d^{-2}`
    ``karras_weight``  the same, as :math:`(t^2+\sigma_d^2)/(t\,\sigma_d)^2` (CTM's DSM loss)
    ``sq-t-inverse``   :math:`\mathrm{snr}^{-1/4} = \sqrt t`
    ``uniform_g``      :math:`1/(1 - s/t)`, which weighs errors of g in G alike; infinite at s = t
    =================  ==========================================================================

    The weight has the shape and dtype of ``t``; only ``uniform_g`` reads ``s``.
    """
    if name not in WEIGHTS:
        raise UserError(f"unknown loss weight {name!r}; allowed: {', '.join(WEIGHTS)}")
    if s is None:
        if name == "uniform_g":
            raise UserError("the loss weight uniform_g depends on s: give it")
        s = t
    return WEIGHTS[name](t, s, sigma_data)
