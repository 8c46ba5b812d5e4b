"""Heun solves on the training grid, and the maps of CTM's estimate and target."""

from __future__ import annotations

import re

import torch

from ctm_core.schedule import karras_grid
from ctm_core.solvers import heun_solve

from .reference import compare, load, student, teacher


@torch.no_grad()
def test_training_maps(precision: torch.dtype) -> None:
    case = load("ctm_training")
    grid = karras_grid(case.meta["N"])
    i, j = case["in/idx_t"], case["in/idx_s"]
    h = int(case["in/heun_steps"])
    assert h == case.meta["heun_steps"]
    y = case.labels(precision)
    times = {"t": grid[i], "u": grid[i + h], "s": grid[j]}
    for name, ours in times.items():
        compare(name, ours.to(precision), case.expected(name, precision), precision)
    t, u, s = (value.to(precision) for value in times.values())
    end = grid[-1].to(precision)

    edm = teacher(case, precision)
    live, ema = (student(case, precision, prefix) for prefix in ("student", "ema"))
    x_t = case.input("x0", precision) + t.view(-1, 1, 1, 1) * case.input("noise", precision)

    compare(
        "teacher_D_xt", edm.denoise(x_t, t, y), case.expected("teacher_D_xt", precision), precision
    )

    def solve(steps: int) -> torch.Tensor:
        return heun_solve(lambda z, r: edm.denoise(z, r, y), x_t, grid, i, steps)

    counts = {int(m[1]) for key in case.tensors if (m := re.match(r"out64/heun_n(\d+)/x_u", key))}
    assert counts
    for steps in sorted(counts):
        name = f"heun_n{steps}/x_u"
        compare(name, solve(steps), case.expected(name, precision), precision, solve=True)
        if precision == torch.float64:
            t_u = case[f"out64/heun_n{steps}/t_u"]
            compare(f"heun_n{steps}/t_u", grid[i + steps], t_u, precision)
    x_u = solve(h)

    estimate = live.G(x_t, t, s, y)
    target = live.G(x_u, u, s, y)
    ours = {
        "estimate_inner_model_outer_model": live.G(estimate, s, end, y),
        "estimate_inner_model_outer_target_model_sg": ema.G(estimate, s, end, y),
        "target_inner_model_sg": ema.G(target, s, end, y),
        "target_inner_target_model_sg": ema.G(ema.G(x_u, u, s, y), s, end, y),
        "target_inner_no": ema.G(x_u, u, end, y),
        "inner_target_G_model_xu_u_s": target,
        "x_u": x_u,
    }
    for name, value in ours.items():
        compare(name, value, case.expected(name, precision), precision, solve=True)
    name = "inner_estimate_G_model_xt_t_s"
    compare(name, estimate, case.expected(name, precision), precision)
