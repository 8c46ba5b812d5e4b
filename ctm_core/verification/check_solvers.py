"""Heun solves on the training grid, and the maps of CTM's estimate and target."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from ctm_core.diffusion.schedule import karras_grid
from ctm_core.diffusion.solvers import heun_solve
from ctm_core.verification import case
from ctm_core.verification.builders import student, teacher
from ctm_core.verification.golden import Check, Golden, exact


@case("ctm_training")
@torch.no_grad()
def maps(golden: Golden) -> Iterator[Check]:
    """Times, the teacher's solves, and every inner and outer map that the file has."""
    grid = karras_grid(golden.meta["N"]).to(golden.device)
    i, j = golden["in/idx_t"].long(), golden["in/idx_s"].long()
    h = int(golden["in/heun_steps"])
    yield exact("heun_steps", h, golden.meta["heun_steps"])
    y = golden.labels()
    times = {"t": grid[i], "u": grid[i + h], "s": grid[j]}
    for name, time in times.items():
        yield golden.check(name, time)
    t, u, s, end = (time.to(golden.precision) for time in (*times.values(), grid[-1]))

    edm = teacher(golden)
    # As in a training step: live weights, and the average in the places marked sg.
    live, average = (student(golden, prefix) for prefix in ("student", "ema"))
    weights = {"model": live, "model_sg": live, "target_model_sg": average}
    x_t = golden.input("x0") + t.view(-1, 1, 1, 1) * golden.input("noise")

    def solve(steps: int) -> Tensor:
        return heun_solve(lambda z, r: edm.denoise(z, r, y), x_t, grid, i, steps)

    x_u = solve(h)
    inner_estimate = {name: model.G(x_t, t, s, y) for name, model in weights.items()}
    inner_target = {name: model.G(x_u, u, s, y) for name, model in weights.items()}

    once = {
        "x_t": x_t,
        "teacher_D_xt": edm.denoise(x_t, t, y),
        "inner_estimate_G_model_xt_t_s": inner_estimate["model"],
    }
    several = {"x_u": x_u, "inner_target_G_model_xu_u_s": inner_target["model"]}
    for key in golden.keys(r"out\d+/.*"):
        name = key.split("/", 1)[1]
        if match := re.fullmatch(r"estimate_inner_(\w+)_outer_(\w+)", name):
            inner, outer = match.groups()
            several[name] = weights[outer].G(inner_estimate[inner], s, end, y)
        elif name == "target_inner_no":
            several[name] = average.G(x_u, u, end, y)
        elif match := re.fullmatch(r"target_inner_(\w+)", name):
            several[name] = average.G(inner_target[match[1]], s, end, y)
        elif match := re.fullmatch(r"heun_n(\d+)/x_u", name):
            several[name] = solve(int(match[1]))
        elif match := re.fullmatch(r"heun_n(\d+)/t_u", name):
            once[name] = grid[i + int(match[1])]
    for solved, maps_ in ((False, once), (True, several)):
        for name, ours in maps_.items():
            if golden.expects(name):
                yield golden.check(name, ours, solve=solved)
