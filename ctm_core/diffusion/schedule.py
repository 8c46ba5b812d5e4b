r"""Time grids and the laws of times, as pure functions of given uniform numbers.

All laws map uniforms on [0, 1) to draws, so that the caller decides where randomness comes from
and a test can enumerate them exactly. Times are noise levels, :math:`\sigma(t) = t`; float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctm_core.runtime.errors import UserError


def karras_sigma(
    fraction: Tensor, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    r"""Noise level at a fraction :math:`\xi \in [0, 1]` of the way from sigma_max to sigma_min.

    .. math:: \bigl(\sigma_\max^{1/\rho}
       + \xi\,(\sigma_\min^{1/\rho} - \sigma_\max^{1/\rho})\bigr)^\rho

    (Karras et al. 2022, eq. 5). Same shape and dtype as ``fraction``.
    """
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigma: Tensor = (high + fraction * (low - high)) ** rho
    return sigma


def karras_grid(
    n: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Grid (n,) of noise levels, i = 0 at exactly sigma_max, the last exactly sigma_min.

    Point i is :func:`karras_sigma` at i / (n - 1). One point is sigma_max alone.
    """
    if n < 1:
        raise UserError(f"a time grid needs at least one point, not {n}")
    fraction = torch.arange(n, dtype=torch.float64) / max(n - 1, 1)
    grid = karras_sigma(fraction, sigma_min, sigma_max, rho)
    grid[-1] = sigma_min
    grid[0] = sigma_max
    return grid.to(dtype)


def heun_steps_from_uniform(u: Tensor | float, max_steps: int) -> int:
    r"""Number of solver steps k on {1, …, M} with :math:`P(k) = 2k / (M(M+1))`.

    CTM draws one k a training step, for the whole batch over all processes (released code; a
    stronger weight on long solves than a uniform k).
    """
    mass = float(u) * (max_steps * (max_steps + 1) // 2)  # in units of P(1)
    k = 1
    while k < max_steps and k * (k + 1) // 2 <= mass:
        k += 1
    return k


def indices_from_uniforms(
    u_t: Tensor, u_s: Tensor, k: int, n: int, final_only: bool = False
) -> tuple[Tensor, Tensor]:
    r"""Grid indices of t and s for a given k: :math:`i \sim U\{0, …, N-1-k\}` and
    :math:`j \sim U\{i+k, …, N-1\}`, or :math:`j = N-1`.

    The times are :math:`t = t_i`, :math:`u = t_{i+k}`, :math:`s = t_j`, so
    :math:`\sigma_\min \le s \le u < t` (CTM, algorithm 1).

    Parameters
    ----------
    u_t, u_s
        Uniforms (B,).
    k, n
        Solver steps, 1 ≤ k ≤ n - 1, and points of the grid.
    final_only
        Whether s is sigma_min always.
    """
    if not 1 <= k <= n - 1:
        raise UserError(f"a grid of {n} points has room for 1 to {n - 1} solver steps, not {k}")
    i = (u_t * (n - k)).long().clamp(max=n - k - 1)
    if final_only:
        return i, torch.full_like(i, n - 1)
    room = n - k - i  # values of j
    return i, i + k + torch.minimum((u_s * room).long(), room - 1)


class Draws(NamedTuple):
    """Draws of k, i and j, int64 (D,), and their probabilities, float64 (D,)."""

    k: Tensor
    i: Tensor
    j: Tensor
    probability: Tensor


def all_draws(n: int, max_steps: int, final_only: bool = False) -> Draws:
    """Every draw of k, i and j once, with its probability.

    The two functions above are piecewise constant, so the midpoints of the pieces give each draw
    as often as it is likely.
    """

    def midpoints(pieces: int) -> Tensor:
        return (torch.arange(pieces, dtype=torch.float64) + 0.5) / pieces

    weights = midpoints(max_steps * (max_steps + 1) // 2)
    steps = [heun_steps_from_uniform(u, max_steps) for u in weights]
    rows = []
    for k in range(1, max_steps + 1):
        p_k = steps.count(k) / len(steps)
        for start, u_t in enumerate(midpoints(n - k)):
            ends = midpoints(1 if final_only else n - k - start)
            i, j = indices_from_uniforms(u_t.expand(len(ends)), ends, k, n, final_only)
            p = torch.full_like(ends, p_k / (n - k) / len(ends))
            rows.append((torch.full_like(i, k), i, j, p))
    return Draws(*(torch.cat(column) for column in zip(*rows, strict=True)))


def lognormal_sigma(
    u: Tensor,
    p_mean: float = -1.2,
    p_std: float = 1.2,
    *,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    r"""EDM's training noise levels, :math:`\ln\sigma \sim N(P_\text{mean}, P_\text{std}^2)`.

    ``u`` (B,) uniforms in (0, 1); the result is the law's quantile, of the same shape and dtype.
    ``bounds`` truncate the law.
    """
    if bounds is not None:
        low, high = torch.special.ndtr((u.new_tensor(bounds).log() - p_mean) / p_std)
        u = low + u * (high - low)
    sigma: Tensor = (p_mean + p_std * torch.special.ndtri(u)).exp()
    return sigma


def dsm_sigma(
    u: Tensor,
    sample_index: Tensor,
    group: int = 2,
    *,
    p_mean: float = -1.2,
    p_std: float = 1.2,
    uniform_max: float = 0.7,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Tensor:
    r"""Noise levels of CTM's denoising loss: half log-normal, half on the grid's curve.

    A sample whose index modulo ``group`` is below ``group // 2`` draws :func:`lognormal_sigma`;
    the others draw :func:`karras_sigma` at :math:`\xi \sim U[0, \xi_\max)`, that is
    :math:`\sigma \in (0.318, 80]`, to stress large noise. The released code splits each
    micro-batch by position; by sample index the split is the same however a batch is divided.

    ``u`` are uniforms (B,) in (0, 1), ``sample_index`` int64 (B,).
    """
    curve = karras_sigma(u * uniform_max, sigma_min, sigma_max, rho)
    return torch.where(sample_index % group < group // 2, lognormal_sigma(u, p_mean, p_std), curve)
