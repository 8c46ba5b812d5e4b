r"""Steps of the probability-flow ODE :math:`\mathrm{d}x/\mathrm{d}t = (x - D(x, t)) / t`.

A denoiser is any callable ``D(x, t)`` with x (B, C, H, W) and t () or (B,) in the dtype of x.
Gradients flow through; callers that want none say so.

A Heun step evaluates the denoiser twice. The multistep solvers ``ab2`` and ``dpmpp_2m`` evaluate
it once, and take the other half of their second order from the step before. They start with a Heun
step: CTM also draws solves of a single step, which an Euler step would make first-order.
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
    return _heun_from(denoiser, x, _slope(denoiser, x, t), t, t_next)


def ab2_step(
    x: Tensor, slope: Tensor, earlier: Tensor, t: Tensor, t_next: Tensor, t_before: Tensor
) -> Tensor:
    r"""A step of second-order Adams-Bashforth in t, for steps of any two sizes.

    .. math:: x + h\,\bigl(d + \tfrac{h}{2h'}(d - d')\bigr),\quad h = t_\text{next} - t,\quad
       h' = t - t_\text{before}

    with the slopes d at t and d' at t_before. The variable is t, because trajectories are straight
    in it at both ends: towards the noise at large t, towards the image at small t.
    """
    step = _wide(t_next - t, x)
    return x + step * (slope + step / _wide(2 * (t - t_before), x) * (slope - earlier))


def dpmpp_2m_step(
    x: Tensor, denoised: Tensor, earlier: Tensor, t: Tensor, t_next: Tensor, t_before: Tensor
) -> Tensor:
    r"""A step of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), with :math:`\lambda = -\ln t`.

    .. math:: \frac{t_\text{next}}{t}\,x + \Bigl(1 - \frac{t_\text{next}}{t}\Bigr)
       \bigl(D + \tfrac{h}{2h'}(D - D')\bigr),\quad
       h = \lambda_\text{next} - \lambda,\quad h' = \lambda - \lambda_\text{before}

    with the denoised images D at t and D' at t_before.
    """
    ratio = _wide(t_next / t, x)
    weight = _wide((t / t_next).log() / (2 * (t_before / t).log()), x)
    return ratio * x + (1 - ratio) * (denoised + weight * (denoised - earlier))


#: Multistep solvers: a step, and whether it extrapolates the slope (or the denoised image).
MULTISTEP = {"ab2": (ab2_step, True), "dpmpp_2m": (dpmpp_2m_step, False)}


def multistep(
    solver: str,
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    t_next: Tensor,
    before: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """A step of a solver of :data:`MULTISTEP`, and what the next step needs of it.

    ``before`` is what the last step gave for this one, and the time it started from; None makes a
    Heun step, which takes two evaluations instead of one.
    """
    step, of_slopes = MULTISTEP[solver]
    denoised = denoiser(x, t)
    slope = (x - denoised) / _wide(t, x)
    kept = slope if of_slopes else denoised
    if before is None:
        return _heun_from(denoiser, x, slope, t, t_next), kept
    earlier, t_before = before
    return step(x, kept, earlier, t, t_next, t_before), kept


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


def _heun_from(denoiser: Denoiser, x: Tensor, slope: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    step = _wide(t_next - t, x)
    slope_next = _slope(denoiser, x + step * slope, t_next)
    return x + step * ((slope + slope_next) / 2)


def _slope(denoiser: Denoiser, x: Tensor, t: Tensor) -> Tensor:
    return (x - denoiser(x, t)) / _wide(t, x)


def _wide(t: Tensor, x: Tensor) -> Tensor:
    """Times () or (B,) shaped to multiply images, in their dtype."""
    t = t.to(x.dtype)
    return t if t.ndim == 0 else t[:, None, None, None]
