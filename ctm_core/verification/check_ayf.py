"""AYF: guided velocities, tangents with warm-up, losses and their gradients."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.objectives import ayf, scd
from ctm_core.verification import case
from ctm_core.verification.builders import student
from ctm_core.verification.check_meanflow import Velocities, weight
from ctm_core.verification.golden import Check, Golden
from ctm_core.verification.step_values import gradient_checks

#: Parts of a case's name: its share of the tangent, and what else is particular.
NAME = re.compile(r"r([\d.]+)(_rms)?(?:_autoguided_lambda([\d.]+))?")


def values(golden: Golden, model: Trajectory, name: str) -> dict[str, Tensor]:
    """Everything of a case."""
    match = NAME.fullmatch(name)
    assert match is not None, name
    share, rms, guidance = match.groups()
    at = Velocities(golden, model, name, second="s")
    path = at.output(student(golden, "teacher"))
    if guidance is not None:
        path = ayf.guided(path, at.output(student(golden, "weak")), float(guidance))
    u, v, dudt = at.along(path)
    a = ayf.tangent_of(u.detach(), v, at.gap * dudt, float(share))
    if rms:
        a = a / a[0].numel() ** 0.5
    loss = ayf.loss(u, scd.normalised(a, "printed"))
    made = {"F": u, "v_teacher": v, "dF_dt": dudt, "tangent": a, "weight": weight(a)}
    return made | {"warmup": u.new_tensor(float(share)), "loss": loss}


@case("ayf")
def losses(golden: Golden) -> Iterator[Check]:
    """Every share of the tangent, norm and guidance."""
    for key in golden.keys(rf"{golden.out}[^/]+/loss"):
        name = key.split("/")[1]
        model = student(golden)
        ours = values(golden, model, name)
        torch.autograd.backward(ours["loss"].mean())
        for value, tensor in ours.items():
            yield golden.check(f"{name}/{value}", tensor, solve=True)
        yield from gradient_checks(golden, name, model)
