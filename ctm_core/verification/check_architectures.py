"""The two DDPM++ variants of released IMM and MeanFlow checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models.foreign.released_forms import CHANGES
from ctm_core.verification import case
from ctm_core.verification.builders import build
from ctm_core.verification.golden import Check, Golden

#: sigma_data of the networks' conditions.
SD = 0.5
#: The official MeanFlow network computes attention's softmax in float32 always.
FLOAT32_SOFTMAX = 1e-6


def released(golden: Golden, method: str) -> Trajectory:
    """The network ``<method>_net`` of the file, its weights in our form."""
    arguments = dict(golden.meta[f"{method}_kwargs"])
    arguments |= {"model_type": "SongUNet", "img_channels": arguments["in_channels"]}
    weights = golden.weights(f"{method}_net").items()
    state = {f"model.{name}": CHANGES[method](name, value) for name, value in weights}
    return build(golden, arguments, state, time_s=True, augment=True)


@case("architectures")
@torch.no_grad()
def released_imm(golden: Golden) -> Iterator[Check]:
    """IMM's raw output, the negative of ours, at t and s in linear time."""
    model = released(golden, "imm").model
    c_noise = [(time.logit() + math.log(SD)) / 4 for time in (golden["in/t"], golden["in/s"])]
    ours = model(golden.input("x"), *c_noise, golden.labels())
    yield golden.check("imm/F", -ours, solve=True)


@case("architectures")
@torch.no_grad()
def released_meanflow(golden: Golden) -> Iterator[Check]:
    """MeanFlow's mean velocity, with augmentation labels and without."""
    model, z = released(golden, "meanflow").model, golden.input("x")
    t, r = golden["in/t"], golden["in/s"]
    c_noise = [time.logit() / 4 for time in (t, r)]
    wide = t.view(-1, 1, 1, 1)
    n = (wide**2 + (SD * (1 - wide)) ** 2).sqrt()
    scaled = (z / n).to(z)
    for name, augment in (("u", golden.augment_labels()), ("u_no_augment", None)):
        raw = model(scaled, *c_noise, golden.labels(), augment)
        ours = (((wide - SD**2 * (1 - wide)) * scaled - SD * raw) / n).to(z)
        yield golden.check(f"meanflow/{name}", ours, solve=True, double=FLOAT32_SOFTMAX)
