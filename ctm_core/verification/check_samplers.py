"""Samplers of CTM and EDM, every jump and every intermediate state."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
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

__all__ = ["follow"]


@case("ctm_sampling")
@torch.no_grad()
def ctm_variants(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """Every sampler variant that the metadata lists: times, outputs of the jumps, result."""
    model = student(golden.sibling(), precision)
    latents, noise = golden.input("latents", precision), golden.input("noise", precision)
    y = golden.labels(precision)
    for name, variant in golden.meta["variants"].items():
        recorder = Recorder(model)
        used: list[int] = []

        def draw(k: int, used: list[int] = used) -> Tensor:
            used.append(k)
            return noise[k]

        final = follow(variant, recorder, latents, draw, y)
        yield exact(f"{name}/jumps", len(recorder.t), variant["jumps"])
        # A jump that lands on the next level itself injects nothing, so some may go unused.
        yield exact(f"{name}/noise_used", [k for k in used if k >= variant["noise_used"]], [])
        expected = golden.expected(f"{name}/final", precision)
        yield compare(f"{name}/final", final, expected, precision, solve=True)
        for key, times in (("t", recorder.t), ("s", recorder.s)):
            expected = golden.expected(f"{name}/{key}", precision)
            yield compare(f"{name}/{key}", torch.stack(times), expected, precision)
        if f"{name}/G" in golden:
            expected = golden.expected(f"{name}/G", precision).flatten(0, 1)
            ours = torch.stack(recorder.out).flatten(0, 1)
            yield compare(f"{name}/G", ours, expected, precision, solve=True)


def follow(
    variant: Mapping[str, Any],
    model: Recorder,
    latents: Tensor,
    noise: Callable[[int], Tensor],
    y: Tensor | None,
) -> Tensor:
    """Run one of the released code's samplers, unclamped.

    Parameters
    ----------
    variant
        Its ``sampler`` and ``steps``, and ``gamma``, grid indices ``ts``, or ``ind_1`` and
        ``ind_2``, as the golden metadata have them.
    model, latents, noise, y
        The network; unit noise to start from and of each injection; labels.

    Raises
    ------
    UserError
        For a sampler that is not known.
    """

    def jump(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return model.G(x, t, s, y)

    kind, steps = variant["sampler"], int(variant["steps"])
    if kind == "heun":
        return sampling.sample(
            model, sampler="heun", nfe=2 * steps - 1, latents=latents, labels=y, clamp=False
        )
    if kind == "gamma":
        plan = sampling.return_jumps(karras_grid(steps), variant["ind_1"], variant["ind_2"])
        return sampling.sample_jumps(jump, latents * plan.t[0], plan, noise)
    gammas: dict[str, Any] = {
        "exact": 0.0,
        "cm_multistep": 1.0,
        "gamma_multistep": variant.get("gamma"),
    }
    if kind not in gammas:
        raise UserError(f"no sampler of ours is the released code's {kind!r}")
    gamma = float(gammas[kind])
    if "ts" in variant:
        levels = karras_grid(steps)[variant["ts"]]
        plan = gamma_sampler.plan(levels, gamma)
        return sampling.sample_jumps(jump, latents * levels[0], plan, noise)
    return sampling.sample(
        model,
        sampler="gamma",
        nfe=steps,
        gamma=gamma,
        latents=latents,
        noise=noise,
        labels=y,
        clamp=False,
    )


@case("edm_sampler")
@torch.no_grad()
def edm_heun(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """EDM's Heun sampler: every state, in float64 around a network of either precision."""
    model = denoiser(golden.sibling(), precision)
    yield exact("S_churn", float(golden.meta["S_churn"]), 0.0)  # ours is deterministic
    y = golden.labels(precision)
    low, high, rho = (float(golden.meta[key]) for key in ("sigma_min", "sigma_max", "rho"))
    levels = karras_grid(int(golden.meta["num_steps"]), low, high, rho)
    states: list[Tensor] = []

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        states.append(x)
        return model.denoise(x.to(precision), t, y).double()

    final = sampling.sample_jumps(
        partial(heun.step, evaluate),
        golden.input("latents", DOUBLE) * levels[0],
        sampling.to_zero(levels),
    )
    yield exact("nfe", len(states), int(golden.expected("nfe", precision)))
    # The states between steps are the inputs of every second evaluation.
    states = [*states[::2], final]
    t_steps = torch.cat([levels, torch.zeros(1)])
    yield compare("t_steps", t_steps, golden.expected("t_steps", precision), DOUBLE)
    x_final = golden.expected("x_final", precision)
    yield compare("x_final", final, x_final, precision, solve=True)
    for key in golden.keys(rf"out{32 if precision == SINGLE else 64}/x_all.*"):
        steps = [int(n) for n in re.findall(r"_(\d+)", key)] or range(len(states))
        for row, step in zip(golden[key], steps, strict=True):
            yield compare(f"x at step {step}", states[step], row, precision, solve=True)

    public = sampling.sample(
        model,
        sampler="heun",
        nfe=2 * len(levels) - 1,
        latents=golden.input("latents", precision),
        labels=y,
        sigma_min=low,
        sigma_max=high,
        rho=rho,
        clamp=False,
    )
    yield compare("x_final of sample()", public, x_final, precision, solve=True)
