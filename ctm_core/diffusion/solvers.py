r"""Steps of the probability-flow ODE :math:`\mathrm{d}x/\mathrm{d}t = (x - D(x, t)) / t`.

A denoiser is any callable ``D(x, t)`` with x (B, C, H, W) and t () or (B,) in the dtype of x.
Gradients flow through; callers that want none say so.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]


def euler_step(denoiser: Denoiser, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    r"""One Euler step, :math:`x + (t' - t)\,(x - D(x, t)) / t`; one evaluation, t' = 0 allowed."""
    return x + _wide(t_next - t, x) * _slope(denoiser, x, t)


def heun_step(denoiser: Denoiser, x: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    r"""One step of Heun's second-order method (Karras et al. 2022, algorithm 1); two evaluations.

    .. math::
       d = (x - D(x, t))/t,\quad x' = x + (t' - t)\,d,\quad d' = (x' - D(x', t'))/t',\quad
       x + (t' - t)\,(d + d')/2
    """
    step = _wide(t_next - t, x)
    slope = _slope(denoiser, x, t)
    slope_next = _slope(denoiser, x + step * slope, t_next)
    return x + step * ((slope + slope_next) / 2)


def heun_solve(denoiser: Denoiser, x: Tensor, grid: Tensor, i: Tensor, k: int) -> Tensor:
    """Carry each sample ``k`` Heun steps down the grid, from its own index i to i + k.

    Every step is a full Heun step, the one onto the grid's last point too, which is sigma_min and
    not 0 (CTM's Solver). Takes 2k evaluations of the whole batch. The grid (N,) holds decreasing
    positive times of any float dtype; i is int64 (B,) with i + k ≤ N - 1.
    """
    grid = grid.to(device=x.device, dtype=x.dtype)
    i = i.to(x.device)
    for step in range(k):
        x = heun_step(denoiser, x, grid[i + step], grid[i + step + 1])
    return x


def _slope(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    return (x - denoiser(x, t)) / _wide(t, x)


def _wide(t: Tensor, x: Tensor) -> Tensor:
    """Times () or (B,) shaped to multiply images, in their dtype."""
    t = t.to(x.dtype)
    return t if t.ndim == 0 else t[:, None, None, None]
