r"""Gaussian mixtures, whose denoiser, score, densities and flow are known: the ground truth.

With data :math:`p_0 = \sum_k w_k N(m_k, V_k)`, V_k diagonal, the noisy law
:math:`p_t = p_0 \circledast N(0, t^2 I)` is the mixture with variances :math:`V_k + t^2`, and

.. math::
   r_k(x) &\propto w_k\, N(x;\ m_k,\ V_k + t^2) \\
   D(x, t) = \mathbb E[x_0 | x_t = x]
      &= \sum_k r_k(x) \Bigl(m_k + \frac{V_k}{V_k + t^2}\,(x - m_k)\Bigr) \\
   \nabla \log p_t(x) &= \frac{D(x, t) - x}{t^2} = \sum_k r_k(x)\, \frac{m_k - x}{V_k + t^2}

The flow G(x, t, s) of the probability-flow ODE :math:`\mathrm dx/\mathrm dt = (x - D(x, t))/t`
is :math:`m + (x - m)\sqrt{(V + s^2)/(V + t^2)}` for one Gaussian. For a mixture it is solved in
:math:`h(\sigma) = x_\sigma - \frac{\sigma}{t} x_t`, which stays of the size of the data:

.. math::
   \frac{\mathrm dh}{\mathrm d \ln\sigma}
      = h - D\bigl(h + \tfrac{\sigma}{t} x_t, \sigma\bigr), \qquad h(t) = 0,
   \qquad g(x_t, t, s) = \frac{h(s)}{1 - s/t}

so g is a weighted mean of the denoiser along the trajectory, and g(x, t, t) = D(x, t).
:func:`exact_model` takes the place of a network, so that samplers, objectives and likelihood run
on it unchanged. Images are (B, C, H, W); everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from ctm_core.diffusion.scalings import scalings
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.runtime.errors import UserError

#: Relative and absolute tolerance of the solver; the flow is then good to about 1e-11.
TOLERANCE = 1e-13


class GaussianMixture:
    """A mixture of K Gaussians with diagonal covariances over images of one shape.

    Parameters
    ----------
    weights, means
        (K,) positive, summing to 1, and (K, C, H, W).
    variances
        Not negative; (K, C, H, W), or (K,) for one per component. 0 is a point mass, whose
        noisy law exists for t > 0 only.
    """

    def __init__(self, weights: Tensor, means: Tensor, variances: Tensor) -> None:
        variances = variances.view(-1, 1, 1, 1) if variances.ndim == 1 else variances
        if means.ndim != 4 or weights.shape != means.shape[:1] or len(variances) != len(means):
            raise UserError(
                "expected weights (K,), means (K, C, H, W) and variances of K components, but got "
                f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(variances.shape)}"
            )
        if abs(float(weights.detach().sum()) - 1) > 1e-6 or bool((weights <= 0).any()):
            raise UserError("the weights of a mixture must be positive and sum to 1")
        if bool((variances < 0).any()):
            raise UserError("the variances of a mixture must not be negative")
        self.weights = weights.double() / weights.double().sum()
        self.means = means.double()
        self.variances = variances.double().expand_as(self.means)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, c, h, w = self.means.shape
        return c, h, w

    def variances_at(self, t: Tensor | float) -> Tensor:
        """V + t²: shape (1 or B, K, C, H, W) for t () or (B,)."""
        t = torch.as_tensor(t, dtype=torch.float64)
        return self.variances + t.reshape(-1, 1, 1, 1, 1) ** 2

    def log_joint(self, x: Tensor, t: Tensor | float) -> Tensor:
        """log w_k N(x; m_k, V_k + t²) of every component: (B, K), differentiable."""
        variances = self.variances_at(t)
        squares = (x.double()[:, None] - self.means) ** 2 / variances
        terms = (squares + variances.log() + math.log(2 * math.pi)).flatten(2).sum(2)
        return self.weights.log() - 0.5 * terms

    def log_density(self, x: Tensor, t: Tensor | float = 0.0) -> Tensor:
        """log p_t(x) in nats: (B,)."""
        return self.log_joint(x, t).logsumexp(1)

    def denoise(self, x: Tensor, t: Tensor | float) -> Tensor:
        """D(x, t) = E[x_0 | x_t = x], t () or (B,) and at least 0: (B, C, H, W)."""
        shrink = self.variances / self.variances_at(t)
        means = self.means + shrink * (x.double()[:, None] - self.means)
        return self._expected(means, x, t)

    def score(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The gradient of log p_t at x: (B, C, H, W)."""
        pulls = (self.means - x.double()[:, None]) / self.variances_at(t)
        return self._expected(pulls, x, t)

    def _expected(self, values: Tensor, x: Tensor, t: Tensor | float) -> Tensor:
        """Mean of values (B, K, C, H, W) over the posterior of the component given x."""
        mean: Tensor = torch.einsum("bk,bkchw->bchw", self.log_joint(x, t).softmax(1), values)
        return mean

    def sample(self, uniform: Tensor, noise: Tensor, t: float = 0.0) -> Tensor:
        """Draws from p_t (B, C, H, W), float64, as a function of given random numbers.

        ``uniform`` (B,) in (0, 1) chooses the component; ``noise`` is standard normal.
        """
        bounds = self.weights.cumsum(0)[:-1]
        k = torch.searchsorted(bounds, uniform.double())
        return self.means[k] + self.variances_at(t)[0, k].sqrt() * noise.double()

    def uniforms(self, x: Tensor, t: float = 0.0) -> Tensor:
        r"""Rosenblatt's transform: (B, D) independent uniforms if and only if x is drawn from p_t.

        Column d is :math:`P(X_d \le x_d \mid X_1 = x_1, …, X_{d-1} = x_{d-1})`, so tests of
        uniformity are tests of the whole law.
        """
        x = x.double().flatten(1)
        means, deviations = self.means.flatten(1), self.variances_at(t)[0].flatten(1).sqrt()
        standard = (x[:, None] - means) / deviations
        logs = -0.5 * standard**2 - deviations.log()
        before = self.weights.log()[:, None] + logs.cumsum(2) - logs  # of the columns before d
        below: Tensor = (before.softmax(1) * torch.special.ndtr(standard)).sum(1)
        return below

    def flow(
        self, x: Tensor, t: Tensor | float, s: Tensor | float, tolerance: float = TOLERANCE
    ) -> Tensor:
        """G(x, t, s), the exact flow of the probability-flow ODE from t to s.

        In closed form for one component, else solved by DOP853 (scipy), all rows together.
        Differentiable in x, by the adjoint equation; not in times or the mixture's numbers.

        Parameters
        ----------
        x
            (B, C, H, W) at times t.
        t, s
            Positive, () or (B,); s may lie on either side of t.
        tolerance
            Relative and absolute, of the solver.
        """
        t, s = (torch.as_tensor(v, dtype=torch.float64).expand(len(x)) for v in (t, s))
        return (s / t).view(-1, 1, 1, 1) * x.double() + self.drift(x, t, s, tolerance)

    def drift(self, x: Tensor, t: Tensor, s: Tensor, tolerance: float = TOLERANCE) -> Tensor:
        """h = G(x, t, s) - (s/t) x for t, s (B,); see :meth:`flow`."""
        if bool((t <= 0).any()) or bool((s <= 0).any()):
            raise UserError("the flow of a mixture needs positive times; end it at sigma_min")
        x = x.double()
        if len(self.weights) == 1:
            mean = self.means
            root = (self.variances_at(s)[:, 0] / self.variances_at(t)[:, 0]).sqrt()
            return mean * (1 - root) + x * (root - (s / t).view(-1, 1, 1, 1))
        made: Tensor = cast(Any, _Drift).apply(x, t, s, self, tolerance)
        return made


def three_modes() -> GaussianMixture:
    """The mixture of the experiment ``gaussian``: unequal modes on images of two pixels."""
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means, variances = torch.tensor(
        [
            [[0.7, 0.3], [-0.6, 0.5], [0.0, -0.7]],
            [[0.01, 0.03], [0.02, 0.004], [0.06, 0.01]],
        ],
        dtype=torch.float64,
    )
    return GaussianMixture(weights, means.view(3, 1, 1, 2), variances.view(3, 1, 1, 2))


class MixtureNetwork(nn.Module):
    r"""The raw network F that makes :class:`~ctm_core.diffusion.trajectory.Trajectory` exact.

    :math:`F = (g - c_\text{skip} x)/c_\text{out}` with the exact g; called as every network is,
    with c_in x, ln(t)/4 and ln(s)/4. Labels are ignored. Its only parameter, ``output_weight`` =
    (a, b) = 0, changes F to :math:`(1 + a) F + b`: an objective is right if its gradient vanishes
    there.
    """

    time_s = True
    label_dim = 0

    def __init__(
        self, mixture: GaussianMixture, sigma_data: float = 0.5, tolerance: float = TOLERANCE
    ) -> None:
        super().__init__()
        self.mixture = mixture
        self.sigma_data = sigma_data
        self.tolerance = tolerance
        self.output_weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(
        self,
        x: Tensor,
        c_noise_t: Tensor,
        c_noise_s: Tensor | None = None,
        y: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """F, float64 (B, C, H, W), from the scaled image and times (B,)."""
        c_noise_s = c_noise_t if c_noise_s is None else c_noise_s
        t, s = (4 * c_noise_t.double()).exp(), (4 * c_noise_s.double()).exp()
        c_skip, c_out, c_in, _ = (c.view(-1, 1, 1, 1) for c in scalings(t, self.sigma_data))
        image = x.double() / c_in
        still = (c_noise_s == c_noise_t).view(-1, 1, 1, 1)
        g = self.mixture.denoise(image, t)
        if not bool(still.all()):
            gap = torch.where(still, 1.0, (1 - s / t).view(-1, 1, 1, 1))
            moved = self.mixture.drift(image, t, s, self.tolerance) / gap
            g = torch.where(still, g, moved)
        a, b = self.output_weight
        raw: Tensor = (1 + a) * (g - c_skip * image) / c_out + b
        return raw


def exact_model(
    mixture: GaussianMixture, sigma_data: float = 0.5, tolerance: float = TOLERANCE
) -> Trajectory:
    """The model with the exact D, g and G of a mixture, float64; see :class:`MixtureNetwork`."""
    return Trajectory(MixtureNetwork(mixture, sigma_data, tolerance), sigma_data).eval()


# -- the solver ---------------------------------------------------------------------------------


class _Drift(torch.autograd.Function):
    """h = G(x, t, s) - (s/t) x, with its derivative in x by the adjoint equation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, t: Tensor, s: Tensor, mixture: GaussianMixture, tolerance: float
    ) -> Tensor:
        def slope(sigma: Tensor, h: Tensor) -> Tensor:
            return h - mixture.denoise(h + (sigma / t).view(-1, 1, 1, 1) * x, sigma)

        h = _solve(slope, torch.zeros_like(x), t, s, tolerance)
        ratio = (s / t).view(-1, 1, 1, 1)
        ctx.save_for_backward(ratio * x + h, t, s, ratio)
        ctx.mixture, ctx.tolerance = mixture, tolerance
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        end, t, s, ratio = ctx.saved_tensors

        # Back from s to t: the trajectory, and the covector a with da/dlnσ = -(I - dD/dx)ᵀ a.
        def slope(sigma: Tensor, state: Tensor) -> Tensor:
            x, a = state.chunk(2, dim=1)
            with torch.enable_grad():
                z = x.detach().requires_grad_()
                denoised = ctx.mixture.denoise(z, sigma)
                (pulled,) = torch.autograd.grad(denoised, z, a)
            return torch.cat([x - denoised.detach(), pulled - a], dim=1)

        state = _solve(slope, torch.cat([end, grad], dim=1), s, t, ctx.tolerance)
        return state.chunk(2, dim=1)[1] - ratio * grad, None, None, None, None


def _solve(
    slope: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    t: Tensor,
    s: Tensor,
    tolerance: float,
) -> Tensor:
    """Integrate dy/dlnσ = slope(σ, y) from t to s (B,), every row over its own interval."""
    length = (s / t).log()
    if not len(start) or not bool(length.any()):
        return start

    def flat(fraction: float, y: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            sigma = t * (fraction * length).exp()
            state = torch.from_numpy(y).view(start.shape)
            return (length.view(-1, 1, 1, 1) * slope(sigma, state)).flatten().numpy()

    solved = solve_ivp(
        flat,
        (0.0, 1.0),
        start.detach().flatten().numpy(),
        method="DOP853",
        t_eval=[1.0],
        rtol=tolerance,
        atol=tolerance,
    )
    if not solved.success:
        raise ArithmeticError(f"the flow was not solved: {solved.message}")
    return torch.from_numpy(solved.y[:, 0]).view(start.shape)
