r"""From noise at sigma_max to images, by jumps or along the ODE.

A sampler is a plan, :class:`Jumps`: levels t from which it moves, levels s where it lands, and
noise added there. A sampler that jumps moves by G; an ODE sampler moves by a step along the
probability-flow ODE of the denoiser, down to 0 and without noise. Each has a file of its own in
:mod:`ctm_core.diffusion.samplers`. NFE counts evaluations of the network per image.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor

from ctm_core.config.sampler_traits import sampler_traits, sampling_problem
from ctm_core.diffusion.schedule import karras_grid
from ctm_core.diffusion.solvers import Denoiser
from ctm_core.runtime.errors import UserError

ROUNDINGS = ("truncate", "round")

#: From x (B, C, H, W) at t to s, which are scalar tensors in the dtype of x: G or a solver's step.
Move = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Standard normal noise (B, C, H, W) of injection k = 0, 1, …: a function of k or a list.
Noise = Callable[[int], Tensor] | Sequence[Tensor] | Tensor


class Model(Protocol):
    """What :func:`sample` needs from a model; :class:`.trajectory.Trajectory` provides it."""

    @property
    def time_s(self) -> bool:
        """Whether the model can jump."""

    def G(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None, /) -> Tensor:
        """Jump from t to s."""

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None, /) -> Tensor:
        """Denoiser at t."""


class Recorder:
    """A model that records the times, inputs and outputs of every call of G or D."""

    time_s = True

    def __init__(self, model: Model) -> None:
        self.model = model
        self.t: list[Tensor] = []
        self.s: list[Tensor] = []
        self.x: list[Tensor] = []
        self.out: list[Tensor] = []

    def G(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        """The model's jump."""
        return self._recorded(x, t, s, self.model.G(x, t, s, y))

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """The model's denoiser."""
        return self._recorded(x, t, t, self.model.denoise(x, t, y))

    def _recorded(self, x: Tensor, t: Tensor, s: Tensor, out: Tensor) -> Tensor:
        for values, value in zip((self.x, self.t, self.s, self.out), (x, t, s, out), strict=True):
            values.append(value)
        return out


class Jumps(NamedTuple):
    """A plan of n moves; each field is a float64 tensor (n,)."""

    t: Tensor  #: level a move starts from
    s: Tensor  #: level it lands on
    noise: Tensor  #: standard deviation of the noise added after it, 0 at the last


def sigmas(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Levels of n jumps: n + 1 grid points from sigma_max to exactly sigma_min; float64."""
    if n < 1:
        raise UserError(f"sampling needs at least one evaluation, not nfe = {n}")
    return karras_grid(n + 1, sigma_min, sigma_max, rho)


class Grid(TypedDict):
    """The keywords of a Karras grid."""

    sigma_min: float
    sigma_max: float
    rho: float


def grid_of(diffusion: Mapping[str, Any]) -> Grid:
    """The grid in the diffusion section of an experiment or a weight file."""
    return Grid(
        sigma_min=diffusion["sigma_min"], sigma_max=diffusion["sigma_max"], rho=diffusion["rho"]
    )


def to_zero(levels: Tensor) -> Jumps:
    """Plan of an ODE sampler: from each of ``levels`` (n,) to the next, from the last to 0."""
    levels = levels.double()
    after = torch.cat([levels[1:], levels.new_zeros(1)])
    return Jumps(levels, after, torch.zeros_like(after))


def return_jumps(grid: Tensor, down: int, up: int) -> Jumps:
    """Plan of the released two-jump sampler: to grid[down], noise up to grid[up], to the end."""
    if not 0 < up <= down < len(grid):
        raise UserError(
            f"two jumps over a grid of {len(grid)} points need 0 < up <= down < {len(grid)}, "
            f"not up = {up}, down = {down}"
        )
    grid = grid.double()
    t, s = grid[[0, up]], grid[[down, -1]]
    noise = torch.zeros_like(t)
    noise[0] = variance_gap(t[1], s[0])
    return Jumps(t, s, noise)


def plan(
    sampler: str,
    nfe: int,
    gamma: float | None = None,
    times: Sequence[float] = (),
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    end: float | None = None,
) -> Jumps:
    """The plan of a named sampler on a Karras grid, or between ``times``; see :func:`sample`."""
    traits = sampler_traits(sampler)
    points = 1 + (nfe - 1) // traits.evaluations_per_step
    if not traits.jumps:
        return to_zero(karras_grid(points, sigma_min, sigma_max, rho))
    # With one jump gamma has no effect; 1 makes every plan go from sigma_max to sigma_min at once.
    levels = sigmas(points, sigma_min, sigma_max, rho)
    if times:
        levels[1:-1] = torch.tensor(times, dtype=levels.dtype)
    if end is not None:
        levels[-1] = end
    jumps: Jumps = _module(sampler).plan(levels, 1.0 if gamma is None else gamma)
    return jumps


def move(model: Model, sampler: str, labels: Tensor | None, dtype: torch.dtype) -> Move:
    """How a named sampler moves; the network runs in ``dtype``, results have that of x."""
    if sampler_traits(sampler).jumps:
        return lambda x, t, s: model.G(x.to(dtype), t, s, labels).to(x)
    step, denoise = _module(sampler).step, denoiser(model, labels, dtype)
    return lambda x, t, s: step(denoise, x, t, s)


def denoiser(model: Model, labels: Tensor | None, dtype: torch.dtype) -> Denoiser:
    """The model's denoiser; the network runs in ``dtype``, results have that of x."""
    return lambda x, t: model.denoise(x.to(dtype), t, labels).to(x)


def _module(sampler: str) -> Any:
    return importlib.import_module(f"ctm_core.diffusion.samplers.{sampler}")


def sample_jumps(move: Move, x: Tensor, jumps: Jumps, noise: Noise | None = None) -> Tensor:
    """Follow a plan from x (B, C, H, W) at level ``jumps.t[0]``.

    ``noise`` is the unit noise of the k-th injection, which follows move k ≤ n - 2; it is needed
    only where the plan adds any.
    """
    if noise is None and bool((jumps.noise > 0).any()):
        raise UserError("this sampler injects noise between its jumps: give noise")
    for k in range(len(jumps.t)):
        x = move(x, jumps.t[k].to(x), jumps.s[k].to(x))
        if noise is not None and jumps.noise[k] > 0:
            x = x + jumps.noise[k].to(x) * (noise(k) if callable(noise) else noise[k]).to(x)
    return x


@torch.no_grad()
def sample(
    model: Model,
    *,
    sampler: str,
    nfe: int,
    gamma: float | None = None,
    times: Sequence[float] = (),
    latents: Tensor,
    noise: Noise | None = None,
    labels: Tensor | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    clamp: bool = True,
    end: float | None = None,
    state_dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw images by a named sampler with a given number of network evaluations.

    The network runs in the mode (train or eval) and autocast it is in.

    Parameters
    ----------
    model
        Trajectory or anything with its ``G``, ``denoise`` and ``time_s``.
    sampler
        Name of a module of :mod:`ctm_core.diffusion.samplers`.
    nfe
        Evaluations; for ``heun`` odd, 2n - 1 on n grid points.
    gamma
        In [0, 1] for samplers that take it, else None; may be None at ``nfe`` 1, where it has no
        effect.
    times
        Noise levels between the jumps, from high to low; default: those of the grid.
    latents
        (B, C, H, W) standard normal; scaled by sigma_max here. Their dtype is the network's.
    noise
        Unit noise of each injection, see :func:`sample_jumps`.
    labels
        As :class:`ctm_core.diffusion.trajectory.Trajectory` takes them.
    sigma_min, sigma_max, rho
        The grid; its ends also with ``times``.
    clamp
        Whether to clamp the result to [-1, 1], as the released code does.
    end
        The time of the last jump, of a model that jumps to no other; None: sigma_min.
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
    problem = sampling_problem(
        sampler,
        nfe,
        gamma,
        times,
        jumps=model.time_s,
        final_only=end is not None,
        span=(sigma_min, sigma_max),
    )
    if problem:
        raise UserError(problem)
    dtype = latents.dtype
    state = dtype if sampler_traits(sampler).jumps else torch.float64
    x = latents.to(state_dtype or state) * sigma_max
    grid = Grid(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    jumps = plan(sampler, nfe, gamma, times, **grid, end=end)
    x = sample_jumps(move(model, sampler, labels, dtype), x, jumps, noise).to(dtype)
    return x.clamp(-1, 1) if clamp else x


def to_uint8(x: Tensor, rounding: str = "truncate") -> Tensor:
    """Images in [-1, 1] to 0..255; uint8, same shape.

    ``truncate`` is floor(127.5 (x + 1)) as in CTM, ``round`` floor(127.5 x + 128) as in EDM; both
    clip. The choice changes FID, so it is part of a protocol.
    """
    if rounding == "truncate":
        levels = (x + 1) * 127.5
    elif rounding == "round":
        levels = x * 127.5 + 128
    else:
        raise UserError(f"unknown rounding {rounding!r}; allowed: {', '.join(ROUNDINGS)}")
    return levels.clamp(0, 255).to(torch.uint8)


def variance_gap(high: Tensor, low: Tensor) -> Tensor:
    """Standard deviation of the noise that raises level ``low`` to ``high``."""
    return (high**2 - low**2).clamp(min=0).sqrt()
