r"""Consistency trajectory matching with denoising score matching (CTM sections 3.2 and 3.3).

One step, as the paper's algorithm 1 without the adversarial term::

    k ~ P(k) ∝ k on 1..M, once for the global batch; i, j on the grid;  t, u, s = t_i, t_{i+k}, t_j
    x_t      = x_0 + t ξ
    x_u      = Solver(x_t, t, u; teacher)                      k Heun steps
    x_est    = G_ema(G_θ(x_t, t, s), s, σ_min)                 gradient passes through G_ema
    x_target = G_ema(G_sg(x_u, u, s), s, σ_min)                no gradient
    L        = d(x_est, x_target) + λ_dsm L_dsm

``matching`` chooses u: *soft* as above; *local* fixes k = 1; *global* solves with the teacher all
the way to u = s = t_j and has no inner target map. With an adversary, λ_gan L_gan(x_est) is added
(:mod:`ctm_core.training.adversary`). The weights λ: :mod:`ctm_core.training.balance`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_core import config
from ctm_core.diffusion import schedule
from ctm_core.diffusion.sampling import grid_of
from ctm_core.diffusion.schedule import Draws
from ctm_core.diffusion.solvers import heun_step, multistep
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.balance import Call, Loss, Rule
from ctm_core.training.batches import Batch
from ctm_core.training.denoising import dsm_loss
from ctm_core.training.objective import StudentObjective, Use
from ctm_core.training.rows import Rows, send
from ctm_core.training.terms import Term

#: See :class:`ctm_core.config.objective_traits.ObjectiveTraits`, whose defaults are CTM's.
TRAITS: dict[str, object] = {}


class Draw(NamedTuple):
    """The draws of a step, on the CPU: k, and per sample the grid indices i of t and j of s."""

    k: int
    i: Tensor
    j: Tensor


@dataclass(kw_only=True, eq=False)
class CtmObjective(StudentObjective):
    """CTM + DSM; with other traits, the objectives that it generalises."""

    #: Gradient passes through it to its input in the estimate.
    target: Trajectory

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sigma_min = self.diffusion.sigma_min
        self.levels = grid_of(self.diffusion.model_dump())
        self.grid = schedule.karras_grid(self.section.grid_points, **self.levels)
        self.evaluations = dict.fromkeys(("teacher", "student", "target"), 0)

    # -- the step ----------------------------------------------------------------------------

    def calls(self, batch: Batch) -> Iterator[Call]:
        """See :class:`ctm_core.training.objective.Objective`."""
        drawn, grid, x_t = self.noised(batch)
        target = self.matching_target(batch, x_t, grid, drawn)
        raw, estimate = self.estimate(batch, x_t, grid, drawn)
        ctm = self.distance(estimate, target).mean()
        losses = [Loss.of("ctm", ctm, raw, keep=self.adversary is not None)]
        if self.adversary is not None:
            gan = self.adversary.generator_loss(estimate, batch)
            losses.append(Loss.of("gan", gan, raw, self.rules()["gan"]))
        del estimate, ctm
        yield Call(raw, tuple(losses))

        if self.section.dsm.enabled:
            del raw, losses
            dsm, dsm_raw = self.denoising(batch)
            yield Call(dsm_raw, (Loss.of("dsm", dsm, dsm_raw, self.rules()["dsm"]),))

    @torch.no_grad()
    def generated(self, batch: Batch) -> Tensor:
        """x_est of the batch, which the discriminator sees."""
        drawn, grid, x_t = self.noised(batch)
        return self.estimate(batch, x_t, grid, drawn)[1]

    def rules(self) -> dict[str, Rule]:
        """lambda_dsm clipped to [0, 1e4], lambda_gan to [0.01, 10] (released code)."""
        rules = {}
        if self.section.dsm.enabled:
            rules["dsm"] = Rule(self.section.dsm.weight, self.section.dsm.adaptive)
        if self.adversary is not None:
            rules["gan"] = self.adversary.rule
        return rules

    def facts(self, batch: Batch) -> dict[str, Term]:
        """k of the step."""
        return {"k": float(self.draw(batch)[0])}

    # -- draws -------------------------------------------------------------------------------

    def draw(self, batch: Batch) -> Draw:
        """k for the global batch, i and j for each sample, by the laws of the released code."""
        n = self.section.grid_points
        k = 1
        if self.section.matching != "local":
            u = batch.shared_uniform("k")
            k = schedule.heun_steps_from_uniform(u, self.section.heun_steps)
        i, j = schedule.indices_from_uniforms(
            batch.uniform("t"), batch.uniform("s"), k, n, self.section.traits.final_only
        )
        return Draw(k, i, j)

    @classmethod
    def passes(cls, section: config.Student, draws: Draws) -> Iterator[tuple[Use, Tensor]]:
        """None for maps that are the identity, where u = s or s = sigma_min."""
        k, i, j, _ = draws
        everywhere = section.matching == "global"
        yield from cls.solver_passes(section, j - i if everywhere else k)
        yield Use("student", "train"), torch.full_like(k, 2 if section.dsm.enabled else 1)
        # The outer map: of the target without gradient, of the estimate with it.
        outer = j < section.grid_points - 1
        yield Use("target", "forward"), outer
        yield Use("target", "through" if section.adversarial is None else "twice"), outer
        if not everywhere:
            live = section.inner == "model"
            yield Use("student" if live else "target", "forward"), j > i + k

    @classmethod
    def solver_passes(cls, section: config.Student, steps: Tensor) -> Iterator[tuple[Use, Tensor]]:
        """Of :meth:`solve` by its number of steps: two for each, or for the first alone."""
        several = steps > 0 if section.solver != "heun" else steps
        yield Use("teacher", "forward"), steps + several

    @classmethod
    def generated_passes(
        cls, section: config.Student, draws: Draws
    ) -> Iterator[tuple[Use, Tensor]]:
        """Of the student and the outer map."""
        yield Use("student", "forward"), torch.ones_like(draws.k)
        yield Use("target", "forward"), draws.j < section.grid_points - 1

    def noised(self, batch: Batch) -> tuple[Draw, Tensor, Tensor]:
        """The draw and the grid (N,), on the CPU, and x_t on the batch's device."""
        drawn, grid = self.draw(batch), self.grid.to(batch.images.dtype)
        t = send(grid[drawn.i], batch.images.device).view(-1, 1, 1, 1)
        return drawn, grid, batch.images + t * batch.normal("noise")

    # -- estimate and target -------------------------------------------------------------------

    def estimate(
        self, batch: Batch, x_t: Tensor, grid: Tensor, drawn: Draw
    ) -> tuple[Tensor, Tensor]:
        """The student's raw output F at (x_t, t, s), and x_est."""
        t, s = (send(grid[index], x_t.device) for index in (drawn.i, drawn.j))
        raw = self.student.raw(x_t, t, s if self.student.time_s else None, batch.labels)
        self.evaluations["student"] += len(batch)
        return raw, self.to_data(self.student.jump(raw, x_t, t, s), grid[drawn.j], batch.labels)

    def to_data(self, x: Tensor, s: Tensor, labels: Tensor | None) -> Tensor:
        """G_ema(x, s, sigma_min), evaluated only where s > sigma_min: elsewhere it is x.

        ``s`` (B,) is on the CPU, like every time below.
        """
        rows = self.rows(s > self.sigma_min * (1 + 1e-6), x)
        if len(rows) == 0:
            return x
        self.evaluations["target"] += len(rows)
        start = rows.of(s)
        end = torch.full_like(start, self.sigma_min)
        return rows.put(x, self.moved(self.target, rows, x, start, end, labels))

    def rows(self, mask: Tensor, x: Tensor) -> Rows:
        """The rows of images on which a map is evaluated, by a mask on the CPU."""
        return Rows(mask, x.device, padded=self.section.training.compile)

    def moved(
        self,
        network: Trajectory,
        rows: Rows,
        x: Tensor,
        start: Tensor,
        end: Tensor,
        labels: Tensor | None,
    ) -> Tensor:
        """G of some rows of images, from times of the same rows to others."""
        start, end = send(start, x.device), send(end, x.device)
        return network.carry(rows.of(x), start, end, rows.of(labels))

    @torch.no_grad()
    def matching_target(self, batch: Batch, x_t: Tensor, grid: Tensor, drawn: Draw) -> Tensor:
        """x_target: the solve, the inner map of the variant, and the outer EMA map."""
        k, i, j = drawn
        if self.section.matching == "global":
            x_s = self.solve(x_t, grid, i, j - i, batch.labels)
        else:
            x_u = self.earlier(batch, x_t, grid, drawn)
            x_s = self.inner_map(x_u, grid, i + k, j, batch.labels)
        return self.to_data(x_s, grid[j], batch.labels)

    def earlier(self, batch: Batch, x_t: Tensor, grid: Tensor, drawn: Draw) -> Tensor:
        """x_u: the trajectory through x_t, k grid points later."""
        steps = torch.full_like(drawn.i, drawn.k)
        return self.solve(x_t, grid, drawn.i, steps, batch.labels)

    def inner_map(
        self, x_u: Tensor, grid: Tensor, at: Tensor, j: Tensor, labels: Tensor | None
    ) -> Tensor:
        """G_sg(x_u, u, s) by live or EMA weights; the identity, not evaluated, where u = s."""
        rows = self.rows(j > at, x_u)
        if len(rows) == 0:
            return x_u
        live = self.section.inner == "model"
        self.evaluations["student" if live else "target"] += len(rows)
        network = self.student if live else self.target
        times = grid[rows.of(at)], grid[rows.of(j)]
        return rows.put(x_u, self.moved(network, rows, x_u, *times, labels))

    @torch.no_grad()
    def solve(
        self, x: Tensor, grid: Tensor, i: Tensor, steps: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Solver(x_t, t, u): steps along the grid from t_i, ``steps`` of each sample."""
        network, counted = self.denoiser()
        solver, kept = self.section.solver, x  # kept: of the step before, for the next
        for m in range(int(steps.max())):
            rows = self.rows(steps > m, x)
            y = rows.of(labels)

            def denoise(z: Tensor, time: Tensor, y: Tensor | None = y) -> Tensor:
                return network.denoise(z, time, y)

            at = rows.of(i) + m
            t, t_next = (send(grid[index], x.device) for index in (at, at + 1))
            if solver == "heun":
                moved = heun_step(denoise, rows.of(x), t, t_next)
            else:
                before = (rows.of(kept), send(grid[at - 1], x.device)) if m else None
                moved, of_step = multistep(solver, denoise, rows.of(x), t, t_next, before)
                kept = rows.put(kept, of_step)
            x = rows.put(x, moved)
            self.evaluations[counted] += len(rows) * (1 if m and solver != "heun" else 2)
        return x

    def denoiser(self) -> tuple[Trajectory, str]:
        """The network whose ODE is solved, and the name it is counted under."""
        assert self.teacher is not None
        return self.teacher, "teacher"

    # -- denoising -----------------------------------------------------------------------------

    def denoising(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mean DSM loss, and the raw output it came through."""
        sigma = self.noise_levels(batch).to(batch.images, non_blocking=True)
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
            **self.levels,
        )


OBJECTIVE = CtmObjective
