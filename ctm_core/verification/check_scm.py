"""sCM: tangents, losses and their gradients, three optimiser steps, samplers, the law of times."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_core.diffusion.sampling import Jumps, sample_jumps
from ctm_core.diffusion.scalings import wide
from ctm_core.diffusion.schedule import lognormal_sigma
from ctm_core.diffusion.tangent import pair_output, tangent
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.objectives import scd
from ctm_core.verification import case
from ctm_core.verification.builders import build
from ctm_core.verification.golden import DOUBLE, Check, Golden, exact
from ctm_core.verification.step_values import gradient_checks, three_steps

#: In float32: the reference's way to F, through D, loses digits at small noise levels.
DETOUR = 2e-3
#: Steps of the warm-up.
WARMUP = 10_000
#: (P_mean, P_std) of the laws of ln sigma.
LAWS = {
    "time/cifar_sigma": (-1.0, 1.4),
    "time/cifar_edm_teacher_sct_sigma": (-1.0, 1.8),
    "time/imagenet64_sigma": (-1.0, 1.6),
}


class Networks(NamedTuple):
    """The student, whose log variance is a part of it in the file, and the teacher."""

    student: Trajectory
    log_variance: scd.LogVariance
    teacher: Trajectory


def networks(golden: Golden) -> Networks:
    """The networks of the file."""
    kwargs, own = golden.meta["kwargs"], "model.logvar_linear."
    weights = golden.weights("student")
    linear = {key.removeprefix(own): weights.pop(key) for key in [*weights] if own in key}
    student = build(golden, kwargs, weights, time_s=False)
    log_variance = scd.LogVariance(linear["weight"].shape[1])
    log_variance.linear.load_state_dict(linear)
    log_variance.to(golden.device, golden.precision)
    student.model.add_module("logvar_linear", log_variance.linear)
    teacher = build(golden, kwargs, golden.weights("teacher"), time_s=False)
    return Networks(student, log_variance, teacher.requires_grad_(False))


def values(golden: Golden, nets: Networks, name: str) -> dict[str, Tensor]:
    """Everything of a case, in the reference's signs: its F is minus ours."""
    x0, noise, t, y = golden.input("x0"), golden.input("noise"), golden["in/t"], golden.labels()
    sd, number = nets.student.sigma_data, re.search(r"iter(\d+)", name)
    x = x0 + wide(t, x0) * noise
    if name.startswith("scd"):
        with torch.no_grad():
            path = nets.teacher.raw(x, t, None, y)
    else:
        path = pair_output("edm", x0, noise, t, sd)
    r = scd.warmup(int(number[1]) if number else WARMUP, WARMUP)
    still, jvp = tangent(nets.student, x, t, None, path, y)
    g_raw = scd.slope(still, jvp, path, x, t, r, sd)
    g = scd.normalised(g_raw, "printed" if name == "scd_printed" else "released")
    raw, log_variance = nets.student.raw(x, t, None, y), nets.log_variance(t)
    # The reference divides by D once more, which only moves the log variance.
    shift = math.log(x0[0].numel())
    prior = 1.0 if name == "scd_printed" else 1 / t
    loss = scd.loss(raw, g, log_variance + shift, prior) - shift
    return {
        "t_hat": (t / sd).atan(),
        "x_hat": x * wide(sd / (t**2 + sd**2).sqrt(), x),
        "dx_hat": -sd * path,
        "F_trig": -raw,
        "jvp": -jvp,
        "g_raw": g_raw,
        "g": g,
        "logvar": log_variance,
        "unweighted": g.square().flatten(1).mean(1),
        "warmup": torch.tensor(r),
        "loss": loss,
        "mean": loss.mean(),
    }


@case("scm")
def losses(golden: Golden) -> Iterator[Check]:
    """Distillation and training at several steps of the warm-up."""
    for key in golden.keys(rf"{golden.out}[^/]+/g"):
        name = key.split("/")[1]
        nets = networks(golden)
        ours = values(golden, nets, name)
        torch.autograd.backward(ours["mean"])
        for value, tensor in ours.items():
            if golden.expects(f"{name}/{value}"):
                single = DETOUR if value in ("jvp", "g_raw", "g") else None
                yield golden.check(f"{name}/{value}", tensor, solve=True, single=single)
        yield from gradient_checks(golden, name, nets.student)


@case("scm")
def steps(golden: Golden) -> Iterator[Check]:
    """RAdam on one fixed batch."""
    nets = networks(golden)
    optimizer = torch.optim.RAdam(nets.student.parameters(), lr=1e-4, betas=(0.9, 0.99))

    def backward() -> Tensor:
        mean = values(golden, nets, f"scd_iter{WARMUP}")["mean"]
        torch.autograd.backward(mean)
        return mean.detach()

    yield from three_steps(golden, nets.student, optimizer, backward)


@case("scm")
@torch.no_grad()
def samplers(golden: Golden) -> Iterator[Check]:
    """From 80 to 0 by way of middle times."""
    student, latents = networks(golden).student, golden["in/latents"].double()
    labels, noise = golden.labels(), golden["in/sample_noise"].double()
    labels = None if labels is None else labels[: len(latents)]

    def move(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return student.g(x.to(golden.precision), t, None, labels).to(x)

    for key in golden.keys(rf"{golden.out}sample/.+/final"):
        name = key.split("/")[2]
        middle = [_level(text, student.sigma_data) for text in name.split("_")[1:]]
        t, end = torch.tensor([80.0, *middle], dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)
        jumps = Jumps(t, torch.zeros_like(t), torch.cat([t[1:], end]))
        out = sample_jumps(move, 80 * latents, jumps, noise)
        yield golden.check(f"sample/{name}/final", out, solve=True)


@case("scm", (DOUBLE,), on_device=False)
def times(golden: Golden) -> Iterator[Check]:
    """Quantiles of ln sigma, and the middle time of two evaluations."""
    for key in golden.keys(r"time/.+_sigma"):
        yield golden.check(key, lognormal_sigma(golden["time/q"], *LAWS[key]))
    yield exact("laws", sorted(LAWS), sorted(golden.keys(r"time/.+_sigma")))
    sigma_data = float(golden.meta["sigma_data"])
    ours = torch.tensor(_level("t1.1", sigma_data), dtype=DOUBLE)
    close = torch.isclose(ours, torch.tensor(float(golden.meta["mid_sigma"]), dtype=DOUBLE))
    yield exact("mid_sigma", bool(close), True)


def _level(text: str, sigma_data: float) -> float:
    """A noise level, or with a leading t its angle."""
    return sigma_data * math.tan(float(text[1:])) if text.startswith("t") else float(text)
