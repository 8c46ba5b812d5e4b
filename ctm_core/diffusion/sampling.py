r"""Samplers as pure functions: from noise at sigma_max to images, by jumps or along the ODE.

A *jump* sampler walks down noise levels :math:`\sigma_0 > … > \sigma_n`, jumps with G from
:math:`\sigma_i` to some :math:`s_i \le \sigma_{i+1}` and adds noise up to :math:`\sigma_{i+1}`;
:class:`Jumps` lists these numbers, so every variant is one short function. An *ODE* sampler
integrates the probability-flow ODE of the denoiser down to 0.

==============  ====================================================================  ========
sampler         jump i → i + 1                                                        NFE
==============  ====================================================================  ========
``gamma``       :math:`s=\sqrt{1-\gamma^2}(\sigma_{i+1}-\sigma_\min)+\sigma_\min`,    n
                noise :math:`\sqrt{\sigma_{i+1}^2-s^2}` (released code)
``gamma_paper`` :math:`s=\max(\sqrt{1-\gamma^2}\,\sigma_{i+1}, \sigma_\min)`, noise   n
                :math:`\gamma\sigma_{i+1}` (CTM, algorithm 2); none at the last
``heun``        n grid points, then 0 by an Euler step (Karras et al. 2022, alg. 1)   2n - 1
``euler``       n grid points, then 0                                                 n
==============  ====================================================================  ========

:math:`\gamma = 0` is exact, deterministic sampling and :math:`\gamma = 1` consistency sampling.
NFE counts evaluations of the network per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ctm_core.diffusion.schedule import karras_grid
from ctm_core.diffusion.solvers import Denoiser, euler_step, heun_step
from ctm_core.runtime.errors import UserError

__all__ = [
    "ROUNDINGS",
    "SAMPLERS",
    "Jumps",
    "Noise",
    "gamma_jumps",
    "gamma_paper_jumps",
    "return_jumps",
    "sample",
    "sample_euler",
    "sample_gamma",
    "sample_gamma_paper",
    "sample_heun",
    "sample_jumps",
    "sigmas",
    "to_uint8",
]

SAMPLERS = ("gamma", "gamma_paper", "heun", "euler")
ROUNDINGS = ("truncate", "round")

#: G(x, t, s) with labels bound: x (B, C, H, W), times scalar tensors in the dtype of x.
Jump = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Standard normal noise (B, C, H, W) of injection k = 0, 1, …: a function of k or a list.
Noise = Callable[[int], Tensor] | Sequence[Tensor] | Tensor


class Model(Protocol):
    """What :func:`sample` needs of a model; :class:`.trajectory.Trajectory` has it."""

    @property
    def time_s(self) -> bool:
        """Whether the model can jump."""

    def G(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, /) -> Tensor:
        """Jump from t to s."""

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None, /) -> Tensor:
        """Denoiser at t."""


class Jumps(NamedTuple):
    """A plan of n jumps; each field is a float64 tensor (n,)."""

    t: Tensor  #: level a jump starts from
    s: Tensor  #: level it lands on
    noise: Tensor  #: standard deviation of the noise added after it, 0 at the last


def sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Levels of n jumps: n + 1 grid points from sigma_max to exactly sigma_min; float64."""
    if n < 1:
        raise UserError(f"sampling needs at least one evaluation, not nfe = {n}")
    return karras_grid(n + 1, sigma_min, sigma_max, rho)


def gamma_jumps(levels: Tensor, gamma: float) -> Jumps:
    r"""Plan of the released gamma-sampling over ``levels`` (n + 1,).

    :math:`s_i = \sqrt{1-\gamma^2}(\sigma_{i+1}-\sigma_\min)+\sigma_\min` with
    :math:`\sigma_\min = \sigma_n`, and noise of variance :math:`\sigma_{i+1}^2 - s_i^2`, so that
    the level after each step is exactly :math:`\sigma_{i+1}` and nothing lands below sigma_min.
    """
    levels, after = levels.double(), levels.double()[1:]
    floor = levels[-1]
    if gamma == 0:  # exact: no rounding may leave a trace of noise
        return Jumps(levels[:-1], after, torch.zeros_like(after))
    target = math.sqrt(1 - gamma**2) * (after - floor) + floor
    return Jumps(levels[:-1], target, _variance_gap(after, target))


def gamma_paper_jumps(levels: Tensor, gamma: float) -> Jumps:
    r"""Plan of gamma-sampling as printed (CTM, algorithm 2), floored at sigma_min.

    :math:`s_i = \max(\sqrt{1-\gamma^2}\,\sigma_{i+1}, \sigma_\min)`, noise
    :math:`\gamma\sigma_{i+1}`; the last jump lands on sigma_min and adds none.
    """
    levels, after = levels.double(), levels.double()[1:]
    target = (math.sqrt(1 - gamma**2) * after).clamp(min=float(levels[-1]))
    noise = gamma * after
    noise[-1] = 0
    return Jumps(levels[:-1], target, noise)


def return_jumps(grid: Tensor, down: int, up: int) -> Jumps:
    """Plan of the released two-jump sampler: to grid[down], noise up to grid[up], to the end.

    Parameters
    ----------
    grid
        (N,) decreasing levels.
    down, up
        Indices with down ≥ up, that is grid[down] ≤ grid[up].
    """
    if not 0 < up <= down < len(grid):
        raise UserError(
            f"two jumps over a grid of {len(grid)} points need 0 < up <= down < {len(grid)}, "
            f"not up = {up}, down = {down}"
        )
    grid = grid.double()
    t, s = grid[[0, up]], grid[[down, -1]]
    noise = torch.zeros_like(t)
    noise[0] = _variance_gap(t[1], s[0])
    return Jumps(t, s, noise)


def sample_jumps(jump: Jump, x: Tensor, jumps: Jumps, noise: Noise | None = None) -> Tensor:
    """Follow a plan: n evaluations.

    Parameters
    ----------
    jump
        G with labels bound.
    x
        (B, C, H, W) at level ``jumps.t[0]``.
    jumps
        The plan.
    noise
        Unit noise of the k-th injection, which follows jump k; k ≤ n - 2. Needed only where the
        plan adds any.
    """
    if noise is None and bool((jumps.noise > 0).any()):
        raise UserError("this sampler injects noise between its jumps: give noise")
    for k in range(len(jumps.t)):
        x = jump(x, jumps.t[k].to(x), jumps.s[k].to(x))
        if noise is not None and jumps.noise[k] > 0:
            x = x + jumps.noise[k].to(x) * (noise(k) if callable(noise) else noise[k]).to(x)
    return x


def sample_gamma(
    jump: Jump, x: Tensor, levels: Tensor, gamma: float = 0.0, noise: Noise | None = None
) -> Tensor:
    """Released gamma-sampling: :func:`sample_jumps` along :func:`gamma_jumps`."""
    return sample_jumps(jump, x, gamma_jumps(levels, gamma), noise)


def sample_gamma_paper(
    jump: Jump, x: Tensor, levels: Tensor, gamma: float = 0.0, noise: Noise | None = None
) -> Tensor:
    """Printed gamma-sampling: :func:`sample_jumps` along :func:`gamma_paper_jumps`."""
    return sample_jumps(jump, x, gamma_paper_jumps(levels, gamma), noise)


def sample_heun(denoiser: Denoiser, x: Tensor, levels: Tensor) -> Tensor:
    """EDM's deterministic sampler over ``levels`` (n,) > 0, then 0; 2n - 1 evaluations.

    ``x`` (B, C, H, W) is at ``levels[0]``; the step to 0 is an Euler step.
    """
    levels = levels.to(x)
    for t, t_next in pairwise(levels):
        x = heun_step(denoiser, x, t, t_next)
    return euler_step(denoiser, x, levels[-1], torch.zeros_like(levels[-1]))


def sample_euler(denoiser: Denoiser, x: Tensor, levels: Tensor) -> Tensor:
    """Euler's method over ``levels`` (n,) > 0, then 0; n evaluations (DDIM's trajectory)."""
    levels = levels.to(x)
    for t, t_next in zip(levels, [*levels[1:], torch.zeros_like(levels[-1])], strict=True):
        x = euler_step(denoiser, x, t, t_next)
    return x


@torch.no_grad()
def sample(
    model: Model,
    *,
    sampler: str,
    nfe: int,
    gamma: float | None = None,
    latents: Tensor,
    noise: Noise | None = None,
    labels: Tensor | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    clamp: bool = True,
    only_gamma_one: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw images by a named sampler with a given number of network evaluations.

    The network runs in the mode (train or eval) and autocast it is in.

    Parameters
    ----------
    model
        Trajectory or anything with its ``G``, ``denoise`` and ``time_s``.
    sampler
        ``gamma``, ``gamma_paper``, ``heun`` or ``euler``.
    nfe
        Evaluations; for ``heun`` odd, 2n - 1 on n grid points.
    gamma
        In [0, 1] for the gamma samplers; None otherwise, and allowed at ``nfe`` 1, where no noise
        is added whatever it is.
    latents
        (B, C, H, W) standard normal; scaled by sigma_max here. Their dtype is the network's.
    noise
        Unit noise of each injection, see :func:`sample_jumps`.
    labels
        As :class:`ctm_core.diffusion.trajectory.Trajectory` takes them.
    sigma_min, sigma_max, rho
        The grid.
    clamp
        Whether to clamp the result to [-1, 1], as the released code does.
    only_gamma_one
        For models trained at s = sigma_min alone (``cd``, ``ct``, ``ctm_s0``).
    state_dtype
        Of x between evaluations; default float64 for ODE samplers, as in EDM, else the latents'.

    Returns
    -------
    Tensor (B, C, H, W) of the dtype of ``latents``.

    Raises
    ------
    UserError
        For an unknown sampler, or a combination of model, sampler, nfe and gamma that cannot be.
    """
    _check(model, sampler, nfe, gamma, only_gamma_one)
    dtype = latents.dtype
    jumping = sampler in ("gamma", "gamma_paper")
    x = latents.to(state_dtype or (dtype if jumping else torch.float64)) * sigma_max
    if jumping:
        plan = gamma_jumps if sampler == "gamma" else gamma_paper_jumps
        # With one jump gamma is void; 1 makes both plans say sigma_max -> sigma_min at once.
        jumps = plan(sigmas(nfe, sigma_min, sigma_max, rho), 1.0 if gamma is None else gamma)
        x = sample_jumps(lambda z, t, s: model.G(z.to(dtype), t, s, labels).to(z), x, jumps, noise)
    else:
        run, points = (sample_heun, (nfe + 1) // 2) if sampler == "heun" else (sample_euler, nfe)
        levels = karras_grid(points, sigma_min, sigma_max, rho)
        x = run(lambda z, t: model.denoise(z.to(dtype), t, labels).to(z), x, levels)
    x = x.to(dtype)
    return x.clamp(-1, 1) if clamp else x


def to_uint8(x: Tensor, rounding: str = "truncate") -> Tensor:
    """Images in [-1, 1] to 0..255; uint8, same shape.

    ``truncate`` is floor(127.5 (x + 1)) as in CTM, ``round`` floor(127.5 x + 128) as in EDM; both
    clip. The choice moves FID, so it is part of a protocol.
    """
    if rounding == "truncate":
        levels = (x + 1) * 127.5
    elif rounding == "round":
        levels = x * 127.5 + 128
    else:
        raise UserError(f"unknown rounding {rounding!r}; allowed: {', '.join(ROUNDINGS)}")
    return levels.clamp(0, 255).to(torch.uint8)


def _variance_gap(high: Tensor, low: Tensor) -> Tensor:
    return (high**2 - low**2).clamp(min=0).sqrt()


def _check(
    model: Model, sampler: str, nfe: int, gamma: float | None, only_gamma_one: bool
) -> None:
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {sampler!r}; allowed: {', '.join(SAMPLERS)}")
    if nfe < 1:
        raise UserError(f"sampling needs at least one evaluation, not nfe = {nfe}")
    if sampler in ("heun", "euler"):
        if gamma is not None:
            raise UserError(f"sampler {sampler} has no gamma; leave it out")
        if sampler == "heun" and nfe % 2 == 0:
            raise UserError(
                f"sampler heun takes 2n - 1 evaluations on n points, so nfe must be odd, not {nfe}"
            )
        if only_gamma_one:
            raise UserError(
                f"this model knows only the target time sigma_min, so sampler {sampler} has no "
                "denoiser to follow; use gamma with gamma = 1"
            )
        return
    if not (model.time_s or only_gamma_one):
        raise UserError(
            f"sampler {sampler} needs a model that jumps, and this one is a denoiser (a teacher); "
            "use heun or euler"
        )
    if gamma is None and nfe > 1:
        raise UserError(f"sampler {sampler} with nfe = {nfe} needs a gamma in [0, 1]")
    if gamma is not None and not 0 <= gamma <= 1:
        raise UserError(f"gamma must lie in [0, 1], not {gamma:g}")
    if only_gamma_one and gamma not in (None, 1):
        raise UserError(
            f"this model knows only the target time sigma_min: gamma must be 1, not {gamma:g}"
        )
