"""Samplers of CTM and EDM, every jump and every intermediate state."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctm_core.diffusion import sampling
from ctm_core.diffusion.samplers import gamma as gamma_sampler
from ctm_core.diffusion.samplers import heun
from ctm_core.diffusion.sampling import Recorder
from ctm_core.diffusion.schedule import karras_grid
from ctm_core.runtime.errors import UserError
from ctm_core.verification import case
from ctm_core.verification.builders import denoiser, student
from ctm_core.verification.golden import DOUBLE, SINGLE, Check, Golden, compare, exact


@case("ctm_sampling")
@torch.no_grad()
def ctm_variants(golden: Golden) -> Iterator[Check]:
    """Every sampler variant that the metadata lists: times, outputs of the jumps, result."""
    model = student(golden.sibling())
    latents, noise = golden.input("latents"), golden.input("noise")
    y = golden.labels()
    for name, variant in golden.meta["variants"].items():
        recorder = Recorder(model)
        final, unexpected = follow(variant, recorder, latents, noise, y)
        yield exact(f"{name}/jumps", len(recorder.t), variant["jumps"])
        yield exact(f"{name}/noise_used", unexpected, [])
        yield golden.check(f"{name}/final", final, solve=True)
        for key, times in (("t", recorder.t), ("s", recorder.s)):
            yield golden.check(f"{name}/{key}", torch.stack(times))
        if f"{name}/G" in golden:
            expected = golden.expected(f"{name}/G").flatten(0, 1)
            ours = torch.stack(recorder.out).flatten(0, 1)
            yield compare(f"{name}/G", ours, expected, golden.precision, solve=True)


def follow(
    variant: Mapping[str, Any], model: Recorder, latents: Tensor, noise: Tensor, y: Tensor | None
) -> tuple[Tensor, list[int]]:
    """Run one of the released code's samplers, unclamped; raises UserError for an unknown one.

    ``variant`` has its ``sampler`` and ``steps``, and ``gamma``, grid indices ``ts``, or ``ind_1``
    and ``ind_2``, as in the golden metadata; ``noise`` holds the unit noise of each injection.
    Also returns which of it was used beyond the variant's ``noise_used``. (A jump that lands on
    the next level itself injects nothing, so some may go unused.)
    """
    used: list[int] = []

    def draw(k: int) -> Tensor:
        used.append(k)
        return noise[k]

    def jump(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return model.G(x, t, s, y)

    kind, steps = variant["sampler"], int(variant["steps"])
    gammas: dict[str, Any] = {
        "exact": 0.0,
        "cm_multistep": 1.0,
        "gamma_multistep": variant.get("gamma"),
    }
    if kind == "gamma" or (kind in gammas and "ts" in variant):
        grid = karras_grid(steps)
        if kind == "gamma":
            plan = sampling.return_jumps(grid, variant["ind_1"], variant["ind_2"])
        else:
            plan = gamma_sampler.plan(grid[variant["ts"]], float(gammas[kind]))
        final = sampling.sample_jumps(jump, latents * plan.t[0], plan, draw)
    elif kind == "heun" or kind in gammas:
        final = sampling.sample(
            model,
            sampler="heun" if kind == "heun" else "gamma",
            nfe=2 * steps - 1 if kind == "heun" else steps,
            gamma=gammas.get(kind),
            latents=latents,
            noise=draw,
            labels=y,
            clamp=False,
        )
    else:
        raise UserError(f"no sampler of ours is the released code's {kind!r}")
    return final, [k for k in used if k >= variant["noise_used"]]


@case("edm_sampler")
@torch.no_grad()
def edm_heun(golden: Golden) -> Iterator[Check]:
    """EDM's Heun sampler: every state, in float64 around a network of either precision."""
    model = denoiser(golden.sibling())
    yield exact("S_churn", float(golden.meta["S_churn"]), 0.0)  # ours is deterministic
    y = golden.labels()
    low, high, rho = (float(golden.meta[key]) for key in ("sigma_min", "sigma_max", "rho"))
    levels = karras_grid(int(golden.meta["num_steps"]), low, high, rho)
    states: list[Tensor] = []

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        states.append(x)
        return model.denoise(x.to(golden.precision), t, y).double()

    final = sampling.sample_jumps(
        partial(heun.step, evaluate),
        golden["in/latents"].double() * levels[0],
        sampling.to_zero(levels),
    )
    yield exact("nfe", len(states), int(golden.expected("nfe")))
    # The states between steps are the inputs of every second evaluation.
    states = [*states[::2], final]
    t_steps = torch.cat([levels, torch.zeros(1)])
    yield compare("t_steps", t_steps, golden.expected("t_steps"), DOUBLE)
    yield golden.check("x_final", final, solve=True)
    for key in golden.keys(rf"out{32 if golden.precision == SINGLE else 64}/x_all.*"):
        steps = [int(n) for n in re.findall(r"_(\d+)", key)] or range(len(states))
        for row, step in zip(golden[key], steps, strict=True):
            yield compare(f"x at step {step}", states[step], row, golden.precision, solve=True)

    public = sampling.sample(
        model,
        sampler="heun",
        nfe=2 * len(levels) - 1,
        latents=golden.input("latents"),
        labels=y,
        sigma_min=low,
        sigma_max=high,
        rho=rho,
        clamp=False,
    )
    yield golden.check("x_final", public, name="x_final of sample()", solve=True)
