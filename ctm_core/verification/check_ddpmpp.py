"""DDPM++ as EDM's denoiser and as CTM's student: F, D, g and G."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ctm_core.diffusion.scalings import scalings
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models.networks.layers import channels_last
from ctm_core.verification import case
from ctm_core.verification.builders import denoiser, student
from ctm_core.verification.golden import DOUBLE, Check, Golden, error, exact


@case("edm_ddpmpp")
def ddpmpp(golden: Golden) -> Iterator[Check]:
    """EDM's DDPM++: raw output and denoiser."""
    yield from denoiser_checks(golden, denoiser(golden))


@torch.no_grad()
def denoiser_checks(golden: Golden, model: Trajectory, *, solve: bool = False) -> Iterator[Check]:
    """F and D of an EDM network, with labels and augmentation labels where the set has them.

    ``solve`` as in :func:`.compare`: True for Fourier embeddings.
    """
    x, t = golden.input("x"), golden.input("sigma")
    labels = golden.labels()
    augment = golden.augment_labels()
    yield golden.check("F", model.raw(x, t, None, labels, augment), solve=solve)
    yield golden.check("D", model.denoise(x, t, labels, augment), solve=solve)
    # What the other condition was in these two is not recorded: either reading may match.
    for name, readings in (
        ("D_noaug", [(labels, None), (None, None)]),
        ("D_labels_None", [(None, augment), (None, None)]),
    ):
        if golden.expects(name):
            expected = golden.expected(name)
            ours = (model.denoise(x, t, *reading) for reading in readings)
            best = min(ours, key=lambda reading: error(reading, expected))
            yield golden.check(name, best, solve=solve)
    if golden.precision == DOUBLE:
        yield golden.check("c_noise", scalings(t, model.sigma_data).c_noise)
    fast = channels_last(model)  # the memory layout that training and sampling use
    last = fast.denoise(x.contiguous(memory_format=torch.channels_last), t, labels, augment)
    yield golden.check("D", last, name="D in channels_last", solve=solve)


@torch.no_grad()
def jump_checks(golden: Golden, model: Trajectory, *, solve: bool = False) -> Iterator[Check]:
    """F, g and G of a student, in float64 its noise conditions, and that G from t to t is x."""
    x, t, s = (golden.input(key) for key in "xts")
    y = golden.labels()
    outputs = {"F": model.raw(x, t, s, y), "g": model.g(x, t, s, y), "G": model.G(x, t, s, y)}
    for name, ours in outputs.items():
        yield golden.check(name, ours, solve=solve)
    yield exact("G where s = t", outputs["G"][s == t], x[s == t])
    if golden.precision == DOUBLE:
        for kind, factor in (("c_noise", 1), ("rescaled", 1000)):
            for key, time in (("t", t), ("s", s)):
                if golden.expects(name := f"{kind}_{key}"):
                    c_noise = scalings(time, model.sigma_data).c_noise
                    yield golden.check(name, factor * c_noise)
    fast = channels_last(model)
    last = fast.G(x.contiguous(memory_format=torch.channels_last), t, s, y)
    yield golden.check("G", last, name="G in channels_last", solve=solve)


@case("ctm_student_cifar")
def jumps(golden: Golden) -> Iterator[Check]:
    """CTM's DDPM++ with s: F, g and G."""
    yield from jump_checks(golden, student(golden))
