r"""Consistency trajectory matching with denoising score matching (CTM sections 3.2 and 3.3).

One step, as the paper's algorithm 1 without the adversarial term::

    k ~ P(k) ∝ k on 1..M, once for the global batch; i, j on the grid;  t, u, s = t_i, t_{i+k}, t_j
    x_t      = x_0 + t ξ
    x_u      = Solver(x_t, t, u; teacher)                      k Heun steps
    x_est    = G_ema(G_θ(x_t, t, s), s, σ_min)                 gradient passes through G_ema
    x_target = G_ema(G_sg(x_u, u, s), s, σ_min)                no gradient
    L        = d(x_est, x_target) + λ_dsm L_dsm

``matching`` chooses u: *soft* as above; *local* fixes k = 1; *global* solves with the teacher all
the way, u = s = t_j, and has no inner target map.

The adaptive weight (section 2.5 of the released behaviour) is

.. math::
    \lambda = \operatorname{clip}\Big(
        \frac{\|\nabla_w L_{ctm}\|}{\|\nabla_w L_{dsm}\| + 10^{-4}}, 0, 10^4 \Big)

with w the weight of the student's last convolution. Both gradients reach w through the raw output
F of their forward pass, so :math:`\delta = \partial L/\partial F` is computed once and serves
twice: pulled back from F to w for the norm, and as the seed of the one backward pass that fills
the student's gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ctm_core import config, schedule
from ctm_core.objectives import Batch
from ctm_core.objectives.dsm import dsm_loss
from ctm_core.solvers import heun_step
from ctm_core.trajectory import Trajectory

if TYPE_CHECKING:
    from ctm_core.perceptual import Distance

__all__ = ["CtmObjective", "adaptive_weight"]

Tensor = torch.Tensor


def adaptive_weight(
    reference: Tensor, other: Tensor, *, low: float = 0.0, high: float = 1e4
) -> Tensor:
    r"""The detached ratio :math:`\|a\| / (\|b\| + 10^{-4})` of two gradients, clipped.

    Parameters
    ----------
    reference, other
        Gradients of the two losses with respect to the same weight, of one shape.
    low, high
        Clip; [0, 1e4] for DSM as released.
    """
    ratio = reference.norm() / (other.norm() + 1e-4)
    weight: Tensor = ratio.clamp(low, high).detach()
    return weight


class CtmObjective:
    """CTM + DSM for a student that knows s.

    Parameters
    ----------
    section, diffusion
        The student's and the process's configuration.
    student
        The network that learns.
    target
        The stop-gradient network, an EMA of the student; its parameters are frozen, yet gradient
        passes through it to its input in the estimate.
    teacher
        The frozen denoiser that the solver integrates.
    distance
        d of the consistency loss.
    """

    def __init__(
        self,
        *,
        section: config.Student,
        diffusion: config.Diffusion,
        student: Trajectory,
        target: Trajectory,
        teacher: Trajectory,
        distance: Distance,
    ) -> None:
        self.section = section
        self.student = student
        self.target = target
        self.teacher = teacher
        self.distance = distance
        self.sigma_min = diffusion.sigma_min
        self.diffusion = diffusion
        self.grid = schedule.karras_grid(
            section.grid_points, diffusion.sigma_min, diffusion.sigma_max, diffusion.rho
        )
        self.evaluations = {"teacher": 0, "student": 0, "target": 0}

    # -- the step ----------------------------------------------------------------------------

    def backward(self, batch: Batch, share: float) -> dict[str, float]:
        """See :class:`ctm_core.objectives.Objective`."""
        k, i, j = self.draw(batch)
        i, j = i.to(batch.images.device), j.to(batch.images.device)
        grid = self.grid.to(batch.images)
        t, s = grid[i], grid[j]
        x_t = batch.images + t.view(-1, 1, 1, 1) * batch.normal("noise")

        raw = self.student.raw(x_t, t, s, batch.labels)
        estimate = self.to_data(self.student.jump(raw, x_t, t, s), s, batch.labels)
        target = self.matching_target(x_t, grid, i, j, k, batch.labels)
        ctm = self.distance(estimate, target).mean()
        self.evaluations["student"] += len(batch)
        terms = {"ctm": float(ctm.detach()), "k": float(k)}

        (delta,) = torch.autograd.grad(ctm, raw)
        outputs, seeds, total = [raw], [delta * share], ctm.detach()
        if self.section.dsm.enabled:
            dsm, dsm_raw = self.denoising(batch)
            (dsm_delta,) = torch.autograd.grad(dsm, dsm_raw)
            weight = self.dsm_weight((raw, delta), (dsm_raw, dsm_delta))
            outputs.append(dsm_raw)
            seeds.append(dsm_delta * (weight * share))
            total = total + weight * dsm.detach()
            terms |= {"dsm": float(dsm.detach()), "lambda_dsm": float(weight)}
        torch.autograd.backward(outputs, seeds)
        return {"loss": float(total), **terms}

    def draw(self, batch: Batch) -> tuple[int, Tensor, Tensor]:
        """k for the global batch, and each sample's grid indices i (of t) and j (of s)."""
        n = self.section.grid_points
        k = 1
        if self.section.matching != "local":
            drawn = schedule.heun_steps_from_uniform(
                batch.shared_uniform("k"), self.section.heun_steps
            )
            k = int(drawn)
        i, j = schedule.indices_from_uniforms(batch.uniform("t"), batch.uniform("s"), k, n)
        return k, i, j

    # -- estimate and target -------------------------------------------------------------------

    def to_data(self, x: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """G_ema(x, s, sigma_min), evaluated only where s > sigma_min: elsewhere it is x."""
        rows = (s > self.sigma_min * (1 + 1e-6)).nonzero().flatten()
        if len(rows) == 0:
            return x
        self.evaluations["target"] += len(rows)
        end = torch.full_like(s[rows], self.sigma_min)
        moved = self.target.G(x[rows], s[rows], end, _take(labels, rows))
        return x.index_copy(0, rows, moved.to(x.dtype))

    @torch.no_grad()
    def matching_target(
        self, x_t: Tensor, grid: Tensor, i: Tensor, j: Tensor, k: int, labels: Tensor | None
    ) -> Tensor:
        """x_target: the teacher's solve, the inner map of the variant, and the outer EMA map."""
        s = grid[j]
        if self.section.matching == "global":
            return self.to_data(self.solve(x_t, grid, i, j - i, labels), s, labels)
        x_u = self.solve(x_t, grid, i, torch.full_like(i, k), labels)
        u = grid[i + k]
        rows = (j > i + k).nonzero().flatten()  # elsewhere u = s and the inner map is the identity
        if len(rows):
            inner = self.student if self.section.inner == "model" else self.target
            self.evaluations["student" if inner is self.student else "target"] += len(rows)
            moved = inner.G(x_u[rows], u[rows], s[rows], _take(labels, rows))
            x_u = x_u.index_copy(0, rows, moved.to(x_u.dtype))
        return self.to_data(x_u, s, labels)

    @torch.no_grad()
    def solve(
        self, x: Tensor, grid: Tensor, i: Tensor, steps: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Heun steps of the teacher along the grid from t_i, ``steps`` of each sample."""
        x = x.clone()
        for m in range(int(steps.max())):
            rows = (steps > m).nonzero().flatten()
            y = _take(labels, rows)

            def denoiser(z: Tensor, time: Tensor, y: Tensor | None = y) -> Tensor:
                return self.teacher.denoise(z, time, y)

            t, t_next = grid[i[rows] + m], grid[i[rows] + m + 1]
            x[rows] = heun_step(denoiser, x[rows], t, t_next)
            self.evaluations["teacher"] += 2 * len(rows)
        return x

    # -- denoising -----------------------------------------------------------------------------

    def denoising(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean DSM loss, and the raw output it came through."""
        sigma = self.noise_levels(batch).to(batch.images)
        loss, raw = dsm_loss(
            self.student, batch.images, sigma, batch.normal("dsm_noise"), batch.labels
        )
        self.evaluations["student"] += len(batch)
        return loss.mean(), raw

    def noise_levels(self, batch: Batch) -> Tensor:
        """sigma of each sample by the two-part law of section 2.3: shape (B,), float64."""
        dsm = self.section.dsm
        return schedule.dsm_sigma(
            batch.uniform("dsm_sigma"),
            batch.indices,
            group=dsm.group,
            p_mean=dsm.p_mean,
            p_std=dsm.p_std,
            uniform_max=dsm.uniform_max,
            sigma_min=self.diffusion.sigma_min,
            sigma_max=self.diffusion.sigma_max,
            rho=self.diffusion.rho,
        )

    def dsm_weight(self, ctm: tuple[Tensor, Tensor], dsm: tuple[Tensor, Tensor]) -> Tensor:
        """lambda_dsm from (raw output, its gradient) of both losses, in float32 or wider."""
        scale = self.section.dsm.weight
        if not self.section.dsm.adaptive:
            return torch.tensor(scale, device=ctm[0].device)
        w = self.student.output_weight
        (at_ctm,) = torch.autograd.grad(ctm[0], w, ctm[1], retain_graph=True)
        (at_dsm,) = torch.autograd.grad(dsm[0], w, dsm[1], retain_graph=True)
        return scale * adaptive_weight(at_ctm, at_dsm)


def _take(labels: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if labels is None else labels[rows]
