r"""Log density along the probability-flow ODE.

The ODE :math:`\mathrm dx/\mathrm dt = (x - D(x, t))/t` carries a law at sigma_max to one at
sigma_min. In the coordinates :math:`z = c_\text{in}(\sigma)\,x` of EDM's preconditioning
(Karras et al. 2022, table 1), where everything is of order one, and with
:math:`\tau = \ln\sigma`,

.. math::
   \frac{\mathrm dz}{\mathrm d\tau} = c_\text{in}\,(c_\text{skip}\,x - D(x, \sigma)), \qquad
   \nabla_z \cdot \frac{\mathrm dz}{\mathrm d\tau}
      = d\,c_\text{skip} - \operatorname{tr} \frac{\partial D}{\partial x}

so by the instantaneous change of variables (Chen et al. 2018; Song et al. 2021, appendix D.2)

.. math::
   \log q_{\sigma_\min}(x) = \log \pi(x_{\sigma_\max})
      + \frac d2 \ln \frac{\sigma_\max^2 + \sigma_d^2}{\sigma_\min^2 + \sigma_d^2}
      + \int_{\ln\sigma_\min}^{\ln\sigma_\max}
        \Bigl(d\,c_\text{skip} - \operatorname{tr} \frac{\partial D}{\partial x}\Bigr)
        \mathrm d\tau

with d the number of an image's elements and :math:`\pi` the law at sigma_max. The result does not
depend on :math:`\sigma_d`, which chooses coordinates alone. The trace is summed over the axes or
estimated with probes :math:`\epsilon`,
:math:`\operatorname{tr} J \approx \operatorname{mean}\, \epsilon^\top J \epsilon`
(Skilling 1989; Hutchinson 1990): unbiased, and fixed along an image's path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctm_core.diffusion import randomness
from ctm_core.diffusion.scalings import scalings
from ctm_core.diffusion.solvers import Denoiser
from ctm_core.runtime.errors import UserError

#: log density of x_T, (B, C, H, W) → (B,) in nats.
Prior = Callable[[Tensor], Tensor]


class Solution(NamedTuple):
    """Log densities of a batch and what they cost."""

    log_density: Tensor  #: (B,) float64, nats
    end: Tensor  #: (B, C, H, W) float64, where the paths arrive at sigma_max
    evaluations: int  #: of the denoiser, each with its derivatives


def normal_log_density(x: Tensor, deviation: float) -> Tensor:
    """log N(x; 0, deviation² I) in nats: (B, …) → (B,)."""
    standard = (x / deviation).flatten(1)
    constant = standard.shape[1] * math.log(deviation * math.sqrt(2 * math.pi))
    return -0.5 * standard.square().sum(1) - constant


def signs(
    seed: int, stream: str, indices: list[int], count: int, shape: tuple[int, ...]
) -> Tensor:
    """Rademacher probes of the images of given indices: (count, B, \\*shape), float64."""
    rows = [
        torch.cat([randomness.uniform(seed, stream, probe, i, 1, shape) for i in indices])
        for probe in range(count)
    ]
    return 1 - 2 * (torch.stack(rows) < 0.5).double()


def denoise_and_trace(
    denoiser: Denoiser, x: Tensor, t: Tensor, probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """D(x, t) (B, C, H, W) and the trace (B,) of its Jacobian in x, without gradient.

    ``probes`` (P, B, C, H, W) have mean 0 and covariance I, and their estimates are averaged; None
    sums over every axis, exact at d derivatives. t is () or (B,).
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        denoised = denoiser(x, t)
        axes = denoised.flatten(1)
        seeds = axes.sum(0) if probes is None else (denoised * probes).flatten(1).sum(1)
    trace = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for d, seed in enumerate(seeds):
        (pull,) = torch.autograd.grad(seed, x, retain_graph=d < len(seeds) - 1)
        if probes is None:
            trace += pull.flatten(1)[:, d]
        else:
            trace += (pull * probes[d]).flatten(1).sum(1) / len(probes)
    return denoised.detach(), trace


def log_density(
    denoiser: Denoiser,
    x: Tensor,
    *,
    probes: Tensor | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    tolerance: float = 1e-5,
    prior: Prior | None = None,
) -> Solution:
    """Log density at ``x`` of the law that the ODE makes at sigma_min from ``prior`` at sigma_max.

    All images of a batch share the steps of the solver, RK45 of scipy, so a value depends on the
    rest of its batch by as much as ``tolerance`` lets it.

    Parameters
    ----------
    denoiser
        D(x, t), x (B, C, H, W) of the dtype and device of the given ``x``, t ().
    x
        (B, C, H, W) floating; the state of the solver is float64 on the CPU.
    probes
        As :func:`denoise_and_trace` takes them.
    tolerance
        Relative and absolute, of the solver.
    prior
        Log density at sigma_max; default N(0, sigma_max² I).

    Raises
    ------
    UserError
        If the denoiser gives NaN or infinity, or the ODE cannot be solved.
    """
    d = x[0].numel()
    v = sigma_data**2
    # One number a image weighs in the solver's norm as much as its d elements do.
    weight = math.sqrt(d)

    def slope(tau: float, z: Tensor) -> tuple[Tensor, Tensor]:
        sigma = math.exp(tau)
        c_skip, _, c_in, _ = scalings(torch.tensor(sigma, dtype=torch.float64), sigma_data)
        image = z / c_in
        level = torch.tensor(sigma, dtype=x.dtype, device=x.device)
        denoised, trace = denoise_and_trace(denoiser, image.to(x), level, probes)
        return c_in * (c_skip * image - denoised.to(z)), (d * c_skip - trace.to(z)) / weight

    low, high = math.sqrt(sigma_min**2 + v), math.sqrt(sigma_max**2 + v)
    start = x.detach().double().cpu() / low
    z, integral, evaluations = solve(
        slope, (math.log(sigma_min), math.log(sigma_max)), start, tolerance
    )
    end = z * high
    at_end = normal_log_density(end, sigma_max) if prior is None else prior(end)
    return Solution(at_end + d * math.log(high / low) + integral * weight, end, evaluations)


def solve(
    slope: Callable[[float, Tensor], tuple[Tensor, Tensor]],
    span: tuple[float, float],
    start: Tensor,
    tolerance: float,
) -> tuple[Tensor, Tensor, int]:
    """RK45 over ``span``, of images and of one more number per image that begins at 0.

    ``slope`` gives the derivatives (B, C, H, W) and (B,) of both from time and images. Returns
    both at the end, float64 on the CPU as ``start`` is, and how often ``slope`` was called.
    """
    size = start.numel()

    def flat(t: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
        value = torch.cat(
            [part.flatten() for part in slope(t, torch.from_numpy(state[:size]).view_as(start))]
        )
        if not bool(value.isfinite().all()):
            raise UserError(
                "the model's denoiser or its derivative is NaN or infinite along the ODE, so it "
                "has no likelihood; its weights are unusable, train it again"
            )
        array: NDArray[np.float64] = value.numpy()
        return array

    both = np.concatenate([start.flatten().numpy(), np.zeros(len(start))])
    solved: Any = scipy.integrate.solve_ivp(
        flat, span, both, method="RK45", t_eval=[span[1]], rtol=tolerance, atol=tolerance
    )
    if not solved.success:
        raise UserError(
            f"the probability-flow ODE of this model cannot be solved to a tolerance of "
            f"{tolerance:g} ({solved.message}); give a larger one"
        )
    end = torch.from_numpy(solved.y[:, 0])
    return end[:size].view_as(start), end[size:], int(solved.nfev)
