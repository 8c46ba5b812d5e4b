"""Truncated consistency models: the second stage's loss and gradient, and the laws of t."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

from ctm_core.diffusion import schedule
from ctm_core.training.objectives import ect, tcm
from ctm_core.verification import builders, case
from ctm_core.verification.check_ect import loss_norms
from ctm_core.verification.golden import DOUBLE, FLOAT32_CALL, FLOAT32_SOLVE, Check, Golden
from ctm_core.verification.step_values import gradient_checks

#: The published settings: law of t in the first stage, and in the second.
FIRST, BOUNDS = (-1.1, 2.0), (0.002, 80.0)
SECOND: dict[str, Any] = {"spread": 0.2, "degrees": 0.01}
#: Of ``stage2_imagenet``, whose name does not say it, and of all others.
IMAGENET, DEFAULT = (0.06, 1 - 4.0**-4, "karras"), (1e-8, 0.0, "step")
#: What is added to t' on the boundary.
ABOVE = 1e-8


@case("tcm")
def losses(golden: Golden) -> Iterator[Check]:
    """Each case: t, r, both outputs, norm, losses on the boundary and off it, gradient."""
    model, first = (builders.denoiser(golden, name).train() for name in ("net", "stage1"))
    names = dict.fromkeys(key.split("/")[1] for key in golden.keys(r"out64/[^/]+/loss"))
    for name in names:
        c, ratio, weight = IMAGENET if name.endswith("imagenet") else DEFAULT
        if (given := re.search(r"ratio([\d.]+)$", name)) is not None:
            ratio = float(given[1])
        edge = float(golden.meta["transition_t"])
        t, second = golden["in/t_before_boundary"].clone(), name.startswith("stage2")
        count = int(len(t) * float(golden.meta["boundary_prob"])) if second else 0
        t[golden["in/perm"][:count]] = edge + ABOVE
        on_boundary = torch.zeros_like(t, dtype=torch.bool)
        on_boundary[golden["in/perm"][:count]] = True
        rest = ~on_boundary
        r = ect.earlier_time(t, ratio, k=8.0, b=1.0, floor=tcm.FLOOR)
        images, noise = golden.input("x0"), golden.input("noise")
        times = t.to(images), r.to(images)
        below = ect.Below(first, edge) if second else None
        made = ect.pair(model, images, noise, times, golden.labels(), c, below)
        loss = ect.pair_weight(weight, *times, model.sigma_data) * made.distance
        factor = float(golden.meta["w_boundary"])
        total = (tcm.shares(on_boundary, count, len(t), factor).to(loss) * loss).mean()
        yield golden.check(f"{name}/t", t)
        yield golden.check(f"{name}/r", r, solve=True)
        yield golden.check(f"{name}/D_t", made.estimate, solve=True)
        yield golden.check(f"{name}/D_r", made.target, solve=True)
        norms = loss_norms(golden, made, loss)
        size = (made.estimate - made.target).flatten(1).norm(dim=1)
        resolved = size + made.estimate.flatten(1).norm(dim=1) * FLOAT32_CALL / FLOAT32_SOLVE
        edges = loss[on_boundary] if second else torch.zeros_like(loss)
        scales = {"l2": resolved[rest], "loss": None if norms is None else norms[rest]}
        for key, ours in (("l2", size[rest]), ("loss", loss[rest])):
            norm = None if norms is None else scales[key]
            yield golden.check(f"{name}/{key}", ours, solve=True, norm=norm)
        yield golden.check(f"{name}/loss_boundary", edges, solve=True)
        mean = None if norms is None else norms.mean()
        yield golden.check(f"{name}/total", total, solve=True, norm=mean)
        model.zero_grad()
        torch.autograd.backward(total)
        yield from gradient_checks(golden, name, model)


@case("tcm", (DOUBLE,), on_device=False)
def times(golden: Golden) -> Iterator[Check]:
    """The laws of t in both stages."""
    q = golden["time/q"]
    first = schedule.lognormal_sigma(q, *FIRST, bounds=BOUNDS)
    yield golden.check("time/stage1_cifar_t", first)
    edge = float(golden.meta["transition_t"])
    second = tcm.heavy_tailed_time(q.cpu(), edge, BOUNDS[1], **SECOND)
    yield golden.check("time/stage2_t", second)
