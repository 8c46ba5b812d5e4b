"""Samplers against the official ones, step by step."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ctm_core import sampling
from ctm_core.schedule import karras_grid
from ctm_core.trajectory import Trajectory

from .reference import Case, build, compare, load, student


class Recorder:
    """A model that notes every call: times and inputs of D, times and outputs of G."""

    time_s = True

    def __init__(self, model: Trajectory) -> None:
        self.model = model
        self.t: list[Tensor] = []
        self.s: list[Tensor] = []
        self.x: list[Tensor] = []
        self.out: list[Tensor] = []

    def G(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        out = self.model.G(x, t, s, y)
        self._note(x, t, s, out)
        return out

    def denoise(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        out = self.model.denoise(x, t, y)
        self._note(x, t, t, out)
        return out

    def _note(self, x: Tensor, t: Tensor, s: Tensor, out: Tensor) -> None:
        for values, value in zip((self.x, self.t, self.s, self.out), (x, t, s, out), strict=True):
            values.append(value)


def test_ctm_variants_in_double() -> None:
    _ctm_variants(torch.float64)


def test_ctm_variants_in_single() -> None:
    _ctm_variants(torch.float32)


@torch.no_grad()
def _ctm_variants(precision: torch.dtype) -> None:
    case = load("ctm_sampling")
    net = load(case.meta["net_file"].removesuffix(".safetensors"))
    model = student(net, precision)
    y = case.labels(precision)
    assert case.meta["variants"]
    for name, variant in case.meta["variants"].items():
        recorder = Recorder(model)
        final = _run(recorder, variant, case, y, precision)
        assert len(recorder.t) == variant["jumps"], name
        compare(f"{name}/final", final, case[f"{name}/final"], precision, solve=True)
        compare(f"{name}/t", torch.stack(recorder.t), case[f"{name}/t"], precision)
        compare(f"{name}/s", torch.stack(recorder.s), case[f"{name}/s"], precision)
        if f"{name}/G" in case:
            ours = torch.stack(recorder.out).flatten(0, 1)
            compare(f"{name}/G", ours, case[f"{name}/G"].flatten(0, 1), precision, solve=True)


def _run(
    model: Recorder, variant: dict[str, Any], case: Case, y: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """A variant through the public entry where it has one, else through the jump functions."""
    latents, noise = case.input("latents", dtype), case.input("noise", dtype)
    steps, kind = variant["steps"], variant["sampler"]
    used: list[int] = []

    def draw(k: int) -> Tensor:
        used.append(k)
        return noise[k]

    if kind == "heun":
        final = sampling.sample(
            model, sampler="heun", nfe=2 * steps - 1, latents=latents, labels=y, clamp=False
        )
    elif kind == "gamma":
        plan = sampling.return_jumps(karras_grid(steps), variant["ind_1"], variant["ind_2"])
        final = sampling.sample_jumps(
            lambda x, t, s: model.G(x, t, s, y), latents * plan.t[0], plan, draw
        )
    else:
        gamma = {"exact": 0.0, "cm_multistep": 1.0}.get(kind, variant.get("gamma"))
        if "ts" in variant:
            levels = karras_grid(steps)[variant["ts"]]
            final = sampling.sample_gamma(
                lambda x, t, s: model.G(x, t, s, y), latents * levels[0], levels, gamma, draw
            )
        else:
            final = sampling.sample(
                model,
                sampler="gamma",
                nfe=steps,
                gamma=gamma,
                latents=latents,
                noise=draw,
                labels=y,
                clamp=False,
            )
    assert used == list(range(variant["noise_used"]))
    return final


@torch.no_grad()
def test_edm_sampler(precision: torch.dtype) -> None:
    """EDM's Heun sampler: every intermediate state, in float64 around either network."""
    case = load("edm_sampler")
    net = load(case.meta["net_file"].removesuffix(".safetensors"))
    model = build(net.meta["kwargs"], net.weights("net", precision), precision, time_s=False)
    assert float(case.meta["S_churn"]) == 0
    y = case.labels(precision)
    diffusion = [float(case.meta[key]) for key in ("sigma_min", "sigma_max", "rho")]
    levels = karras_grid(int(case.meta["num_steps"]), *diffusion)
    # The states between steps are the inputs of every second evaluation.
    states: list[Tensor] = []

    def denoiser(x: Tensor, t: Tensor) -> Tensor:
        states.append(x)
        return model.denoise(x.to(precision), t, y).double()

    final = sampling.sample_heun(
        denoiser, case.input("latents", torch.float64) * levels[0], levels
    )
    assert len(states) == int(case.expected("nfe", precision))
    states = [*states[::2], final]
    t_steps = torch.cat([levels, torch.zeros(1)])
    compare("t_steps", t_steps, case["out64/t_steps"], torch.float64)
    compare("x_final", final, case.expected("x_final", precision), precision, solve=True)
    prefix = f"out{32 if precision == torch.float32 else 64}/x_all"
    (key,) = (key for key in case.tensors if key.startswith(prefix))
    steps = [int(n) for n in re.findall(r"_(\d+)", key)] or range(len(states))
    for row, step in zip(case[key], steps, strict=True):
        compare(f"x at step {step}", states[step], row, precision, solve=True)

    public = sampling.sample(
        model,
        sampler="heun",
        nfe=2 * len(levels) - 1,
        latents=case.input("latents", precision),
        labels=y,
        sigma_min=diffusion[0],
        sigma_max=diffusion[1],
        rho=diffusion[2],
        clamp=False,
    )
    compare("sample()", public, case.expected("x_final", precision), precision, solve=True)
