r"""Continuous-time consistency distillation, sCD (Lu and Song 2025, algorithm 1).

The consistency function is the denoiser, :math:`f(x, \sigma) = D(x, \sigma)`, the identity at
σ = 0. With :math:`\hat x = c\,x`, c and s̃ of :mod:`ctm_core.diffusion.tangent`, and the path of
the teacher's output :math:`F_\phi`, its derivative along the teacher's flow, times c, is

.. math::
   g = c^2 \sigma_d\,(F^- - F_\phi) + r\,(\sigma_d\,J - c\,\tilde s\,\hat x), \qquad
   \hat g = \frac{g}{\nu + 0.1},

without gradient, where r grows linearly from 0 to 1 within ``warmup`` steps, and ν is the root
mean square of g (``released``) or its norm (``printed``). It vanishes where f is constant along
the flow. The loss moves F against it,

.. math::
   L = p\,e^{w(\sigma)}\,\tfrac1D \|F - F^- + \hat g\|^2 - w(\sigma),

with the weight w, a linear map of the sinusoids of :math:`\tfrac14\ln\sigma` that is trained
beside the network, and p = 1 or 1/σ. Signs are those of EDM's F, which is minus the paper's.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ctm_core.config import Student
from ctm_core.diffusion import schedule
from ctm_core.diffusion.scalings import wide
from ctm_core.diffusion.schedule import Draws
from ctm_core.diffusion.tangent import tangent
from ctm_core.models.networks.embeddings import PositionalEmbedding
from ctm_core.training.acceleration import full_precision
from ctm_core.training.balance import Call, Loss
from ctm_core.training.batches import Batch
from ctm_core.training.objective import StudentObjective, Use
from ctm_core.training.rows import send
from ctm_core.training.terms import Term

TRAITS = {
    "time_s": False,
    "final_only": True,
    "end": 0.0,
    "ctm_loss": False,
    "jvp": True,
    "settings": {
        "p_mean": {
            "default": -1.0, "minimum": -20.0, "maximum": 20.0, "description": "mean of ln sigma"
        },
        "p_std": {
            "default": 1.4, "minimum": 1e-3, "maximum": 10.0, "description": "its deviation"
        },
        "warmup": {
            "default": 10_000, "minimum": 0, "maximum": 1e9,
            "description": "steps until the tangent is complete",
        },
        "norm": {
            "default": "released", "choices": ["released", "printed"],
            "description": "of the tangent: root mean square, or norm",
        },
        "prior": {
            "default": "one", "choices": ["one", "inverse"],
            "description": "p: 1 as printed, or 1/sigma",
        },
    },
}  # fmt: skip

#: Added to the tangent's norm.
NORM_OFFSET = 0.1


def warmup(step: int, steps: float) -> float:
    """r of a step (from 0)."""
    return min(1.0, step / steps) if steps else 1.0


def slope(
    raw: Tensor, jvp: Tensor, path: Tensor, x: Tensor, t: Tensor, r: float, sigma_data: float
) -> Tensor:
    """g at noise levels t (B,), from F, J and the F_v of the path."""
    root = (t**2 + sigma_data**2).sqrt()
    c, sine = (wide(value, x) for value in (sigma_data / root, t / root))
    return c**2 * sigma_data * (raw - path) + r * (sigma_data * jvp - c * sine * (c * x))


def normalised(g: Tensor, norm: str) -> Tensor:
    """g / (ν + 0.1) of each sample."""
    size = torch.linalg.vector_norm(g, dim=(1, 2, 3), keepdim=True)
    if norm == "released":
        size = size / g[0].numel() ** 0.5
    made: Tensor = g / (size + NORM_OFFSET)
    return made


def loss(raw: Tensor, g: Tensor, log_variance: Tensor, prior: Tensor | float = 1.0) -> Tensor:
    """The loss (B,) of a normalised tangent, with -w = ``log_variance`` (B,)."""
    square = (raw - raw.detach() + g).square().flatten(1).mean(1)
    return prior * square / log_variance.exp() + log_variance


class LogVariance(nn.Module):
    """-w(σ): a linear map of the sinusoids of ln(σ)/4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embedding = PositionalEmbedding(channels)
        self.linear = nn.Linear(channels, 1)
        nn.init.normal_(self.linear.weight, std=channels**-0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) to (B,)."""
        sines = self.embedding(t.log() / 4).to(self.linear.weight)
        with full_precision(t.device.type):
            # The cosines first, as the released weights have them.
            value: Tensor = self.linear(torch.cat([*sines.chunk(2, 1)[::-1]], 1))
        return value.squeeze(1)


class ScdObjective(StudentObjective):
    """See the module."""

    def __post_init__(self) -> None:
        super().__post_init__()
        weight = self.student.output_weight
        log_variance = LogVariance(int(self.student.model.model_channels))  # type: ignore[arg-type]
        self.modules = {"log_variance": log_variance.to(weight.device, weight.dtype)}

    def calls(self, batch: Batch) -> Iterator[Call]:
        """See :class:`ctm_core.training.objective.Objective`."""
        t, noise, y = (
            send(self.times(batch), batch.images.device),
            batch.normal("noise"),
            batch.labels,
        )
        x = batch.images + wide(t, batch.images) * noise
        path = self.path(batch, x, t, noise)
        still, jvp = tangent(self.student, x, t, None, path, y)
        raw = self.student.raw(x, t, None, y)
        self.evaluations["student"] += 2 * len(batch)
        g = slope(still, jvp, path, x, t, self.warmup(batch), self.student.sigma_data)
        g = normalised(g, str(self.section.settings["norm"]))
        log_variance = self.modules["log_variance"]
        prior = 1 / t if self.section.settings["prior"] == "inverse" else 1.0
        value = loss(raw, g, log_variance(t), prior).mean()
        name = self.section.objective
        yield Call(raw, (Loss.of(name, value, raw, beside=log_variance.parameters()),))

    @torch.no_grad()
    def path(self, batch: Batch, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The teacher's output."""
        assert self.teacher is not None
        self.evaluations["teacher"] += len(batch)
        return self.teacher.raw(x, t, None, batch.labels)

    def times(self, batch: Batch) -> Tensor:
        """σ of each sample: float64, on the CPU."""
        law = self.number("p_mean"), self.number("p_std")
        return schedule.lognormal_sigma(batch.uniform("t"), *law)

    def warmup(self, batch: Batch) -> float:
        """r."""
        return warmup(batch.step, self.number("warmup"))

    def facts(self, batch: Batch) -> dict[str, Term]:
        """r."""
        return {"warmup": self.warmup(batch)}

    @classmethod
    def passes(cls, section: Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """F twice, once with its derivative, and the teacher once."""
        one = torch.ones_like(draws.k)
        yield Use("student", "tangent"), one
        yield Use("student", "train"), one
        if section.traits.teacher:
            yield Use("teacher", "forward"), one


OBJECTIVE = ScdObjective
