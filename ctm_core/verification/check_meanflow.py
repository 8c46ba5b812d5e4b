"""MeanFlow: velocities and their derivatives, losses and gradients, samplers, laws of times."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ctm_core.diffusion.scalings import wide
from ctm_core.diffusion.tangent import pair_output, tangent
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.objectives import ayf, meanflow, scd
from ctm_core.verification import case
from ctm_core.verification.builders import student
from ctm_core.verification.golden import DOUBLE, Check, Golden, compare, exact
from ctm_core.verification.step_values import gradient_checks, three_steps

EPSILON, IMPROVED_EPSILON = 1e-3, 0.01
#: Of quantiles and shares of 10^6 draws of the reference, as a part of their value.
DRAWN = 0.02
#: Draws of the reference, and of ours.
DRAWS = 10**6
#: Multiples of its first three negative powers fill a cube evenly.
PLASTIC = 1.2207440846057596


class Velocities:
    """u, du/dt and what they are made of, at the times and images of a file."""

    def __init__(self, golden: Golden, model: Trajectory, name: str, second: str = "r") -> None:
        self.golden, self.model, self.y = golden, model, golden.labels()
        model.parametrisation = "native" if name.startswith("native") else "edm"
        self.x0, self.noise = golden.input("x0"), golden.input("noise")
        t, r = golden["in/t"], golden[f"in/{second}"]
        self.gap = wide(t - r, self.x0)
        self.t, self.s = (time / (1 - time) for time in (t, r))
        self.x = self.x0 + wide(self.t, self.x0) * self.noise
        form = model.parametrisation
        self.z = self.x / wide(1 + self.t, self.x)
        self.form = meanflow.velocity(form, self.t, self.x, model.sigma_data)
        self.pair = pair_output(form, self.x0, self.noise, self.t, model.sigma_data)

    @torch.no_grad()
    def output(self, network: Trajectory) -> Tensor:
        """A network's F at r = t."""
        return network.raw(self.x, self.t, None, self.y)

    def along(self, path: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u with its graph, v, and du/dt along a path."""
        still, jvp = tangent(self.model, self.x, self.t, self.s, path, self.y)
        raw = self.model.raw(self.x, self.t, self.s, self.y)
        u, v = (self.form.of(output, self.z) for output in (raw, path))
        return u, v, self.form.slope(still, jvp, path, self.z)


def values(golden: Golden, model: Trajectory, name: str) -> dict[str, Tensor]:
    """Everything of a case."""
    at = Velocities(golden, model, name)
    if name.startswith("distil"):
        path = at.output(student(golden, "teacher"))
    elif name.startswith("imf"):
        path = at.output(model)
    else:
        path = at.pair
    u, v, dudt = at.along(path)
    made = {"u": u, "z": at.z, "v": v, "v_teacher": v, "v_pred": v, "dudt": dudt}
    if name == "distil_opt_grad":
        a = ayf.tangent_of(u.detach(), v, at.gap * dudt, 1.0)
        made |= {
            "tangent": a,
            "weight": weight(a),
            "loss": ayf.loss(u, scd.normalised(a, "printed")),
        }
    else:
        power = re.search(r"_p([\d.]+)", name)
        p = float(power[1]) if power else 1.0 if name.startswith("imf") else 0.75
        aim = at.form.of(at.pair, at.z) if name.startswith("imf") else v
        target = aim - at.gap * dudt
        squares = (u - target).square().flatten(1).sum(1)
        epsilon = IMPROVED_EPSILON if name.startswith("imf") else EPSILON
        made |= {"u_tgt": target, "tangent": target, "V": u + at.gap * dudt, "sq": squares}
        made |= {
            "weight": (squares + epsilon) ** -p,
            "loss": meanflow.adaptive(squares, p, epsilon),
        }
    return made | {"mean": made["loss"].mean()}


def weight(a: Tensor) -> Tensor:
    """1 / (norm + 0.1) of tangents, by way of the code that normalises them."""
    return (scd.normalised(a, "printed") * a).flatten(1).sum(1) / a.square().flatten(1).sum(1)


@case("meanflow")
def losses(golden: Golden) -> Iterator[Check]:
    """Both parametrisations, distillation, and improved MeanFlow."""
    for key in golden.keys(rf"{golden.out}[^/]+/loss"):
        name = key.split("/")[1]
        model = student(golden)
        ours = values(golden, model, name)
        torch.autograd.backward(ours["mean"])
        for value, tensor in ours.items():
            if golden.expects(f"{name}/{value}"):
                yield golden.check(f"{name}/{value}", tensor, solve=True)
        yield from gradient_checks(golden, name, model)


@case("meanflow")
def steps(golden: Golden) -> Iterator[Check]:
    """Adam on one fixed batch."""
    model = student(golden)

    def backward() -> Tensor:
        mean = values(golden, model, "edm_p0.75")["mean"]
        torch.autograd.backward(mean)
        return mean.detach()

    optimizer = torch.optim.Adam(model.parameters(), lr=6e-4)
    yield from three_steps(golden, model, optimizer, backward)


@case("meanflow")
@torch.no_grad()
def samplers(golden: Golden) -> Iterator[Check]:
    """Equal steps in linear time: CTM's jumps, or ``native`` from t = 1 to 0."""
    model, latents, labels = student(golden), golden["in/latents"].double(), golden.labels()
    labels = None if labels is None else labels[: len(latents)]
    r_min, t_max = (float(golden.meta[key]) for key in ("r_min", "t_max"))
    for key in golden.keys(rf"{golden.out}sample/.+/final"):
        form, number = re.fullmatch(r"(\w+)_n(\d+)", key.split("/")[2]).groups()  # type: ignore[union-attr]
        times = torch.linspace(1, 0, int(number) + 1, dtype=DOUBLE)
        z = latents
        if form == "edm":
            times[0], times[-1] = t_max, r_min
            z = t_max * z
        for t, r in pairwise(times.to(golden.device)):
            z = _step(model, form, z, t, r, labels, golden.precision)
        yield golden.check(f"sample/{form}_n{number}/final", z, solve=True)


def _step(
    model: Trajectory, form: str, z: Tensor, t: Tensor, r: Tensor, y: Tensor | None, dtype: Any
) -> Tensor:
    """z_r of z_t."""
    if form == "native":  # at t = 1 there is no sigma
        conditions = (time.to(dtype).expand(len(z)) for time in (t, t - r))
        labels = model._one_hot(y, z.to(dtype))
        u: Tensor = model.model(z.to(dtype), *conditions, labels)
        return z - (t - r) * u.to(z)
    sigma, end = t / (1 - t), r / (1 - r)
    return model.G((z / (1 - t)).to(dtype), sigma, end, y).to(z) * (1 - r)


@case("meanflow", (DOUBLE,), on_device=False)
def times(golden: Golden) -> Iterator[Check]:
    """Quantiles of t, r and their gap, by our law at evenly spread uniforms."""
    q = golden["time/q"]
    index = torch.arange(1, DRAWS + 1, dtype=DOUBLE)
    uniforms = [(0.5 + index * PLASTIC**-k) % 1 for k in (1, 2, 3)]
    laws = sorted({key.split("/")[1] for key in golden.keys(r"time/v.+/.+")})
    yield exact("laws", laws, ["v0", "v1"])
    for law in laws:
        t, r = map(meanflow.linear, meanflow.draw_times(uniforms, law, equal=0.25))
        different = t != r
        ours = {
            "t": t.quantile(q),
            "r": r.quantile(q),
            "t_minus_r_given_different": (t - r)[different].quantile(q),
        }
        for name, value in ours.items():
            key = f"time/{law}/{name}"
            # The reference's are those of random draws: two standard errors of a small share.
            noise = 2 / (DRAWS * q).sqrt()
            far = ((value / golden[key] - 1).abs() - noise).clamp(min=0)
            yield Check(key, float(far.max()), DRAWN)
        key = f"time/{law}/share_equal"
        yield compare(key, (~different).double().mean(), golden[key], DOUBLE, double=DRAWN)
