"""IMM: times, maps, kernels, loss and its gradients, and the two samplers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.objectives import imm
from ctm_core.verification import case
from ctm_core.verification.builders import student
from ctm_core.verification.golden import DOUBLE, SINGLE, Check, Golden
from ctm_core.verification.step_values import gradient_checks

#: The authors' constants (a, b) of the weight w, and the time of the least noise.
FORMS = {"simple_edm": (1, 5, 0.006), "euler_fm": (2, 4, 0.0)}
LOW, HIGH = 0.006, 0.994
RHO = 7.0
#: Absolute tolerances of a difference of numbers near 1, as shares of the largest weight.
SMALL: dict[str, Any] = {"single": 1e-6, "double": 1e-14}
#: In float32 the gradient at an output is a difference of near unit vectors.
AT_OUTPUT = 5e-2


class Network(NamedTuple):
    """The file's network under a parametrisation: conditions are times, in thousandths."""

    model: Trajectory
    form: str

    def push(self, x: Tensor, t: Tensor, s: Tensor, y: Tensor | None) -> Tensor:
        """f_{s,t}(x), in the dtype of x around a network in its own."""
        sigma_data, dtype = self.model.sigma_data, self.model.output_weight.dtype
        t, s = (time.to(x).expand(len(x)) for time in (t, s))
        c_in = imm.coefficients(self.form, t, s, sigma_data).c_in.view(-1, 1, 1, 1)
        second = s if self.form == "simple_edm" else t - s
        conditions = ((1000 * time).to(dtype) for time in (t, second))
        raw = self.model.model((c_in * x).to(dtype), *conditions, y)
        return imm.pushed(self.form, raw.to(x), x, t, s, sigma_data)


@case("imm", (DOUBLE,), on_device=False)
def maps(golden: Golden) -> Iterator[Check]:
    """λ, r and w on a grid of times, and the law of t."""
    t = golden["map/t"]
    yield golden.check("map/logsnr", imm.log_snr(t))
    for key in golden.keys(r"map/r_k.+_without_max"):
        k = float(_match(key, r"r_k([\d.]+)_")[0])
        before = imm.eta(t) - imm.RANGE / 2**k
        # Without the max the stored ones go on below 0, where ours stay.
        yield golden.check(key, torch.where(before < 0, imm.time_of(before), imm.earlier(t, k)))
    for key in golden.keys(r"map/w_.+"):
        a, b = _match(key, r"w_a([\d.]+)_b([\d.]+)")
        yield golden.check(key, imm.weight(t, float(a), float(b)))
    drawn = LOW + (HIGH - LOW) * golden["time/q"]
    yield golden.check("time/t", drawn)
    sigma_data = float(golden.meta["sigma_data"])
    yield golden.check("time/sigma_of_t", sigma_data * imm.eta(drawn))


@case("imm")
def losses(golden: Golden) -> Iterator[Check]:
    """Every parametrisation and k: maps, kernels, loss per group, and all gradients."""
    size = int(golden.meta["M"])
    out = f"out{32 if golden.precision == SINGLE else 64}"
    for key in golden.keys(rf"{out}/[^/]+/mmd"):
        name = key.split("/")[1]
        form, k = _match(name, r"(.+)_k([\d.]+)")
        model = student(golden).requires_grad_()
        network = Network(model, form)
        x_0, noise, labels = golden.input("x0"), golden.input("noise"), golden.labels()
        t, s = golden["in/t"], golden["in/s"]
        r = torch.maximum(s, imm.earlier(t, float(k)))
        each = [time.repeat_interleave(size).to(golden.device) for time in (t, s, r)]
        sd = model.sigma_data
        x_t, x_r = (imm.noised(x_0, noise, time, sd) for time in (each[0], each[2]))
        y = network.push(x_t, each[0], each[1], labels)
        y.retain_grad()
        with torch.no_grad():
            target = network.push(x_r, each[2], each[1], labels)
        scale = 1 / imm.coefficients(form, t, s, sd).c_out.abs()
        groups = [images.view(-1, size, *images.shape[1:]) for images in (y, target)]
        mmd = imm.v_statistic(groups[0], groups[1], scale)
        a, b, _ = FORMS[form]
        w = imm.weight(t, a, b)
        loss = w.to(mmd) * mmd
        torch.autograd.backward(loss.mean())

        ours = {"r": r, "w": w, "w_kernel": scale, "x_t": x_t, "x_r": x_r}
        ours |= {"y_st": y, "y_sr": target}
        for pair, (i, j) in {"tt": (0, 0), "rr": (1, 1), "tr": (0, 1)}.items():
            ours[f"K_{pair}"] = 1 + imm.kernel_minus_one(groups[i], groups[j], scale)
        for value, tensor in ours.items():
            yield golden.check(f"{name}/{value}", tensor, solve=True)
        most = float(w.max())
        for value, tensor in {"mmd": mmd, "loss": loss, "mean": loss.mean()}.items():
            yield golden.check(f"{name}/{value}", tensor, norm=most, **SMALL)
        assert y.grad is not None
        yield golden.check(f"{name}/dloss_dy", y.grad, single=AT_OUTPUT)
        yield from gradient_checks(golden, name, model)


@case("imm")
@torch.no_grad()
def samplers(golden: Golden) -> Iterator[Check]:
    """Pushforward and restart sampling."""
    model = student(golden)
    latents, labels = golden["in/latents"].double(), golden.labels()
    noise = golden["in/sample_noise"].double()
    labels = None if labels is None else labels[: len(latents)]
    out = f"out{32 if golden.precision == SINGLE else 64}"
    for key in golden.keys(rf"{out}/sample/.+/final"):
        name = key.split("/")[2]
        form, kind, plan = _match(name, r"(.+)_(push|restart)_(n\d+.*)")
        network, low = Network(model, form), torch.tensor(FORMS[form][2], dtype=DOUBLE)
        times = path(plan, float(low)).to(golden.device)
        x = model.sigma_data * latents
        for step, (t, s) in enumerate(pairwise(times)):
            x = network.push(x, t, s if kind == "push" else low, labels)
            if kind == "restart" and step < len(times) - 2:
                x = imm.noised(x, noise[step], s.expand(len(x)), model.sigma_data)
        yield golden.check(f"sample/{name}/final", x, solve=True)


def path(plan: str, low: float) -> Tensor:
    """The times of a sampler by its name, the first HIGH and the last ``low``."""
    steps, _, kind = plan[1:].partition("_")
    if kind.startswith("eta"):
        middle = float(kind.removeprefix("eta"))
        return torch.tensor([HIGH, middle / (1 + middle), low], dtype=DOUBLE)
    share = torch.linspace(0, 1, int(steps) + 1, dtype=DOUBLE)
    if kind == "edm":
        first, last = (imm.eta(torch.tensor(t, dtype=DOUBLE)) ** (1 / RHO) for t in (HIGH, low))
        return imm.time_of((first + share * (last - first)) ** RHO)
    return HIGH + share * (low - HIGH)


def _match(text: str, pattern: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    assert match is not None, text
    return match.groups()
