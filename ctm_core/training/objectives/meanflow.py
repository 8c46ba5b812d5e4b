r"""MeanFlow (Geng et al. 2025): the average velocity between any two times, from data.

In linear time, :math:`t = \sigma/(1+\sigma)` and :math:`z = (1-t)\,x`, the network's average
velocity u leads from t to r by :math:`z_r = z - (t - r)\,u`, which is CTM's jump G. In EDM's
parametrisation

.. math::
   u = a\,z - b\,F, \qquad a = \frac{t - \sigma_d^2(1-t)}{n^2},\quad b = \frac{\sigma_d}{n},\quad
   n^2 = t^2 + \sigma_d^2 (1-t)^2,

so a student that starts from the teacher has the teacher's velocity at r = t. With the velocity v
of a path, given by its output :math:`F_v` (:mod:`ctm_core.diffusion.tangent`),

.. math::
   \frac{\mathrm du}{\mathrm dt} = b \Bigl(\frac{b}{n^2}\,z + a\,(F - F_v)
       - \frac{J}{t\,(1-t)}\Bigr), \qquad
   S = \bigl\| u - \operatorname{sg}\bigl(v - (t - r)\tfrac{\mathrm du}{\mathrm dt}\bigr)\bigr\|^2,
   \qquad L = \frac{S}{\operatorname{sg}(S + \epsilon)^p} .

Here the path is the pair's, :math:`v = \xi - x_0`. In the ``native`` parametrisation u = F.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_core.config import Student
from ctm_core.diffusion.scalings import wide
from ctm_core.diffusion.schedule import Draws, lognormal_sigma
from ctm_core.diffusion.tangent import pair_output, tangent
from ctm_core.training.balance import Call, Loss
from ctm_core.training.batches import Batch
from ctm_core.training.objective import StudentObjective, Use
from ctm_core.training.rows import send

TRAITS = {
    "teacher": False,
    "initial": "teacher",
    "zero_s": True,
    "ctm_loss": False,
    "jvp": True,
    "settings": {
        "times": {
            "default": "v1", "choices": ["v0", "v1", "improved"],
            "description": "law of t and r: the paper's, the repository's better one, that of "
            "improved MeanFlow",
        },
        "equal": {
            "default": 0.25, "minimum": 0.0, "maximum": 1.0,
            "description": "share of samples with r = t",
        },
        "p": {
            "default": 0.75, "minimum": 0.0, "maximum": 1.0,
            "description": "the loss of each sample is divided by its (S + epsilon)^p",
        },
        "epsilon": {
            "default": 1e-3, "minimum": 1e-12, "maximum": 1.0, "description": "see p"
        },
    },
}  # fmt: skip


# -- times ---------------------------------------------------------------------------------------


class Law(NamedTuple):
    """logit t and logit r are normal; then they are sorted, or r is at most t."""

    t: tuple[float, float]
    r: tuple[float, float]
    sort: bool


LAWS = {
    "v0": Law((-2.0, 2.0), (-2.0, 2.0), True),
    "v1": Law((-0.6, 1.6), (-4.0, 1.6), False),
    "improved": Law((-0.4, 1.0), (-0.4, 1.0), True),
}


def draw_times(uniforms: Sequence[Tensor], law: str, equal: float) -> tuple[Tensor, Tensor]:
    """σ_t and σ_r ≤ σ_t from three uniforms (B,): the logit of a linear time is ln σ."""
    (u_t, u_r, coin), (by_t, by_r, sort) = uniforms, LAWS[law]
    t, r = lognormal_sigma(u_t, *by_t), lognormal_sigma(u_r, *by_r)
    t, r = (torch.maximum(t, r) if sort else t), torch.minimum(t, r)
    return t, torch.where(coin < equal, t, r)


def linear(t: Tensor) -> Tensor:
    """The linear time of a noise level."""
    return t / (1 + t)


# -- velocities ----------------------------------------------------------------------------------


class Velocity(NamedTuple):
    """u = a z - b F at some times, and what its derivative has of z; images' factors."""

    a: Tensor
    b: Tensor
    of_z: Tensor  #: b² / n²
    rate: Tensor  #: t (1 - t), of the linear t

    def of(self, raw: Tensor, z: Tensor) -> Tensor:
        """u from F; v from F_v."""
        return self.a * z - self.b * raw

    def slope(self, raw: Tensor, jvp: Tensor, path: Tensor, z: Tensor) -> Tensor:
        """du/dt from F, J and the F_v of the path."""
        return self.of_z * z + self.b * (self.a * (raw - path) - jvp / self.rate)


def velocity(name: str, t: Tensor, like: Tensor, sigma_data: float) -> Velocity:
    """The velocity of a parametrisation at noise levels (B,), for images such as ``like``."""
    t = linear(t)
    rate = t * (1 - t)
    if name == "native":
        zero = torch.zeros_like(t)
        parts = zero, zero - 1, zero, rate
    else:
        square = t**2 + sigma_data**2 * (1 - t) ** 2
        a, b = (t - sigma_data**2 * (1 - t)) / square, sigma_data / square.sqrt()
        parts = a, b, b**2 / square, rate
    return Velocity(*(wide(part, like) for part in parts))


def adaptive(squares: Tensor, p: float, epsilon: float) -> Tensor:
    """S / sg(S + ε)^p."""
    return squares / (squares + epsilon).detach() ** p


# -- the objective -------------------------------------------------------------------------------


class MeanFlowObjective(StudentObjective):
    """See the module."""

    def calls(self, batch: Batch) -> Iterator[Call]:
        """See :class:`ctm_core.training.objective.Objective`."""
        device, noise, y = batch.images.device, batch.normal("noise"), batch.labels
        t, s = (send(time, device) for time in self.times(batch))
        x = batch.images + wide(t, batch.images) * noise
        path, aim = self.paths(batch, x, t, noise)
        still, jvp = tangent(self.student, x, t, s, path, y)
        raw = self.student.raw(x, t, s, y)
        self.evaluations["student"] += 2 * len(batch)

        of = velocity(self.student.parametrisation, t, x, self.student.sigma_data)
        z, gap = x / wide(1 + t, x), wide(linear(t) - linear(s), x)
        slope = gap * of.slope(still, jvp, path, z)
        value = self.loss(batch, of.of(raw, z), of.of(aim, z), slope).mean()
        yield Call(raw, (Loss.of(self.section.objective, value, raw),))

    def loss(self, batch: Batch, u: Tensor, v: Tensor, slope: Tensor) -> Tensor:
        """The loss (B,) of velocities; ``slope`` is (t - r) du/dt."""
        squares = (u - (v - slope)).square().flatten(1).sum(1)
        return adaptive(squares, self.number("p"), self.number("epsilon"))

    def paths(self, batch: Batch, x: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """F_v of the path along which u is differentiated, and of the velocity u learns."""
        form = self.student.parametrisation, batch.images, noise, t, self.student.sigma_data
        pair = pair_output(*form)
        return pair, pair

    def times(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """σ of t and of r, of each sample: float64, on the CPU."""
        uniforms = [batch.uniform(stream) for stream in ("t", "r", "equal")]
        drawn = draw_times(uniforms, str(self.section.settings["times"]), self.number("equal"))
        t, r = (time.clamp(self.diffusion.sigma_min, self.diffusion.sigma_max) for time in drawn)
        return t, r

    @classmethod
    def passes(cls, section: Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """F twice, once with its derivative, and the teacher, if any, once."""
        one = torch.ones_like(draws.k)
        yield Use("student", "tangent"), one
        yield Use("student", "train"), one
        if section.traits.teacher:
            yield Use("teacher", "forward"), one


OBJECTIVE = MeanFlowObjective
