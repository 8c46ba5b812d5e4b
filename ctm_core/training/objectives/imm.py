r"""Inductive moment matching (Zhou et al. 2025, equations 12, 13 and 67): without an ODE.

In linear time, :math:`x_t = (1-t)\,x_0 + t\,\sigma_d\,\xi` with :math:`\sigma = \sigma_d\,\eta`,
:math:`\eta(t) = t/(1-t)`. A group of M images shares t, s and r::

    t ~ U(ε, T),  s ~ U(ε, t),  r = max(s, η⁻¹(max(0, η(t) - 160 / 2^k)))
    x_r = (1 - r) x_0 + r σ_d ξ                   the same x_0 and ξ as x_t
    y   = f_{s,t}(x_t),   y⁻ = sg f_{s,r}(x_r)    live weights, the same dropout masks
    L   = w(t) · (1/M²) Σ_jk [K(y_j, y_k) + K(y⁻_j, y⁻_k) - 2 K(y_j, y⁻_k)]

The group's outputs at (s, t) shall have the law of those at (s, r), by a V-statistic of the
Laplace kernel :math:`K(a, b) = \exp(-\tilde w \max(\|a-b\|, 10^{-8})/D)`,
:math:`\tilde w = 1/|c_\text{out}(s, t)|`. The map is CTM's jump,
:math:`f_{s,t}(x_t) = (1-s)\,G(x, \sigma_t, \sigma_s)`, around a network that is called as CTM's
is, so a teacher's weights fit; its F is minus the paper's. ε and T are the times of sigma_min and
sigma_max.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_core.config import Student
from ctm_core.diffusion.scalings import wide
from ctm_core.diffusion.schedule import Draws
from ctm_core.diffusion.tangent import same_masks
from ctm_core.training.balance import Call, Loss
from ctm_core.training.batches import Batch
from ctm_core.training.objective import StudentObjective, Use
from ctm_core.training.rows import send

TRAITS = {
    "teacher": False,
    "initial": "teacher",
    "ctm_loss": False,
    "zero_s": True,
    "group": "group_size",
    "settings": {
        "group_size": {
            "default": 4, "minimum": 1, "maximum": 1024,
            "description": "M, images that share t, s and r",
        },
        "k": {
            "default": 15.0, "minimum": 0.0, "maximum": 40.0,
            "description": "r lies 160 / 2^k below t in sigma / sigma_data",
        },
        "a": {
            "default": 1.0, "minimum": 0.0, "maximum": 10.0,
            "description": "power of 1 - t in the weight",
        },
        "b": {
            "default": 5.0, "minimum": -20.0, "maximum": 20.0,
            "description": "log-SNR above which the weight falls",
        },
    },
}  # fmt: skip

#: The parametrisation of our networks.
FORM = "simple_edm"

#: Distances below it count as it, and have no gradient.
FLOOR = 1e-8
#: r lies this far below t in eta, over 2^k: the length of [0, 160], which holds every eta.
RANGE = 160.0


# -- times ---------------------------------------------------------------------------------------


def eta(t: Tensor) -> Tensor:
    """t / (1 - t), which is sigma over sigma_data."""
    return t / (1 - t)


def time_of(eta: Tensor) -> Tensor:
    """The linear time of an eta ≥ 0."""
    return eta / (1 + eta)


def earlier(t: Tensor, k: float) -> Tensor:
    """The time 160 / 2^k below t in eta, at least 0."""
    # Below -1 the inverse would come out positive again.
    return time_of((eta(t) - RANGE / 2**k).clamp(min=0))


def log_snr(t: Tensor) -> Tensor:
    """λ = 2 ln((1 - t) / t)."""
    return 2 * ((1 - t) / t).log()


def weight(t: Tensor, a: float, b: float) -> Tensor:
    """w(t) = ½ sigmoid(b - λ) (-dλ/dt) (1 - t)^a / ((1 - t)² + t²)."""
    slope = 2 / (t * (1 - t))
    return 0.5 * torch.sigmoid(b - log_snr(t)) * slope * (1 - t) ** a / ((1 - t) ** 2 + t**2)


# -- maps ----------------------------------------------------------------------------------------


class Coefficients(NamedTuple):
    """f = c_skip x + c_out F(c_in x, …), tensors of the shape of the times."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


def coefficients(form: str, t: Tensor, s: Tensor, sigma_data: float) -> Coefficients:
    """Of ``simple_edm``, EDM's preconditioning in linear time, or of ``euler_fm``."""
    n = ((1 - t) ** 2 + t**2).sqrt()
    c_in = 1 / (sigma_data * n)
    if form == "euler_fm":
        return Coefficients(torch.ones_like(t), -(t - s) * sigma_data, c_in)
    c_skip = ((1 - t) * (1 - s) + t * s) / n**2
    return Coefficients(c_skip, -(t - s) * sigma_data / n, c_in)


def noised(x_0: Tensor, noise: Tensor, t: Tensor, sigma_data: float) -> Tensor:
    """x_t (B, C, H, W), at times (B,)."""
    t = wide(t, x_0)
    return (1 - t) * x_0 + t * sigma_data * noise


def pushed(form: str, raw: Tensor, x: Tensor, t: Tensor, s: Tensor, sigma_data: float) -> Tensor:
    """f_{s,t}(x) from the raw output F there."""
    c_skip, c_out, _ = coefficients(form, t, s, sigma_data)
    return wide(c_skip, x) * x + wide(c_out, x) * raw


# -- the loss ------------------------------------------------------------------------------------


def kernel_minus_one(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """K(a_j, b_k) - 1 (G, M, M) of groups (G, M, C, H, W), with kernel weights ``scale`` (G,).

    Distances are made of differences: |a|² + |b|² - 2ab has no digits left where images are near.
    """
    squares = (a[:, :, None] - b[:, None]).flatten(3).square().sum(3)
    distance = squares.clamp(min=FLOOR**2).sqrt()  # no infinite slope on the diagonal
    # The three kernels' mean is a small difference of numbers near 1.
    return torch.expm1(-scale.to(a).view(-1, 1, 1) * distance / a[0, 0].numel())


def v_statistic(y: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    """The squared discrepancy of two groups' laws, diagonals included: (G,)."""
    tt, rr = (kernel_minus_one(x, x, scale) for x in (y, target))
    return (tt + rr - 2 * kernel_minus_one(y, target, scale)).mean((1, 2))


# -- the objective -------------------------------------------------------------------------------


class Draw(NamedTuple):
    """Times of every sample, equal within a group: (B,), float64, on the CPU."""

    t: Tensor
    s: Tensor
    r: Tensor


class InductiveMomentMatching(StudentObjective):
    """See the module."""

    def calls(self, batch: Batch) -> Iterator[Call]:
        """See :class:`ctm_core.training.objective.Objective`."""
        drawn, noise = self.draw(batch), batch.normal("noise")
        t, s, r = (send(time, batch.images.device) for time in drawn)
        with same_masks(batch.images), torch.no_grad():
            target = self.pushed(batch, noise, r, s)[1]
        raw, y = self.pushed(batch, noise, t, s)
        size, sigma_data = self.group, self.student.sigma_data
        scale = 1 / coefficients(FORM, t, s, sigma_data).c_out[::size].abs()
        mine, theirs = (images.view(-1, size, *images.shape[1:]) for images in (y, target))
        w = weight(t[::size], self.number("a"), self.number("b"))
        loss = (w.to(y) * v_statistic(mine, theirs, scale)).mean()
        yield Call(raw, (Loss.of("imm", loss, raw),))

    def pushed(self, batch: Batch, noise: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """F and f_{s,t}(x_t), called as every student is: with x_t / (1 - t) at sigma_t."""
        sigma_data = self.student.sigma_data
        x = noised(batch.images, noise, t, sigma_data)
        sigma, end = (sigma_data * eta(time) for time in (t, s))
        raw = self.student.raw(x / wide(1 - t, x), sigma, end, batch.labels)
        self.evaluations["student"] += len(batch)
        return raw, pushed(FORM, -raw, x, t, s, sigma_data)

    def draw(self, batch: Batch) -> Draw:
        """t and s of each group by the uniform laws, and r."""
        low, high = (
            time_of(torch.tensor(level / self.student.sigma_data, dtype=torch.float64))
            for level in (self.diffusion.sigma_min, self.diffusion.sigma_max)
        )
        t = low + (high - low) * batch.group_uniform("t", self.group)
        s = low + (t - low) * batch.group_uniform("s", self.group)
        return Draw(t, s, torch.maximum(s, earlier(t, self.number("k"))))

    @classmethod
    def passes(cls, section: Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """Of y, and of the target."""
        yield Use("student", "train"), torch.ones_like(draws.k)
        yield Use("student", "forward"), torch.ones_like(draws.k)


OBJECTIVE = InductiveMomentMatching
