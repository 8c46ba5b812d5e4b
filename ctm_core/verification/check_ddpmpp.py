"""DDPM++ as EDM's denoiser and as CTM's student: F, D, g and G."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ctm_core.diffusion.scalings import scalings
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.training.acceleration import channels_last
from ctm_core.verification import case
from ctm_core.verification.builders import denoiser, student
from ctm_core.verification.golden import DOUBLE, Check, Golden, compare, error, exact

__all__ = ["denoiser_checks", "jump_checks"]


@case("edm_ddpmpp")
def ddpmpp(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """EDM's DDPM++: raw output and denoiser."""
    yield from denoiser_checks(golden, precision, denoiser(golden, precision))


@torch.no_grad()
def denoiser_checks(
    golden: Golden, precision: torch.dtype, model: Trajectory, *, solve: bool = False
) -> Iterator[Check]:
    """F and D of an EDM network, with labels and augmentation labels where the set has them.

    ``solve`` as in :func:`compare`: True for Fourier embeddings.
    """
    x, t = golden.input("x", precision), golden.input("sigma", precision)
    labels = golden.labels(precision)
    augment = golden.augment_labels(precision)

    def checked(name: str, ours: Tensor) -> Check:
        return compare(name, ours, golden.expected(name, precision), precision, solve=solve)

    yield checked("F", model.raw(x, t, None, labels, augment))
    yield checked("D", model.denoise(x, t, labels, augment))
    # What the other condition was in these two is not recorded: either reading may match.
    for name, readings in (
        ("D_noaug", [(labels, None), (None, None)]),
        ("D_labels_None", [(None, augment), (None, None)]),
    ):
        if golden.expects(name, precision):
            expected = golden.expected(name, precision)
            ours = (model.denoise(x, t, *reading) for reading in readings)
            yield checked(name, min(ours, key=lambda reading: error(reading, expected)))
    if precision == DOUBLE:
        yield checked("c_noise", scalings(t, model.sigma_data).c_noise)


@torch.no_grad()
def jump_checks(
    golden: Golden, precision: torch.dtype, model: Trajectory, *, solve: bool = False
) -> Iterator[Check]:
    """F, g and G of a student, and that a jump from t to t is the identity."""
    x, t, s = (golden.input(key, precision) for key in "xts")
    y = golden.labels(precision)
    outputs = {"F": model.raw(x, t, s, y), "g": model.g(x, t, s, y), "G": model.G(x, t, s, y)}
    for name, ours in outputs.items():
        yield compare(name, ours, golden.expected(name, precision), precision, solve=solve)
    yield exact("G where s = t", outputs["G"][s == t], x[s == t])


@case("ctm_student_cifar")
@torch.no_grad()
def jumps(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """CTM's DDPM++ with s: F, g, G, and in float64 its noise conditions."""
    model = student(golden, precision)
    yield from jump_checks(golden, precision, model)
    t, s = golden.input("t", precision), golden.input("s", precision)
    if precision == DOUBLE:
        c_noise_t, c_noise_s = (scalings(time, model.sigma_data).c_noise for time in (t, s))
        for name, ours in {
            "c_noise_t": c_noise_t,
            "c_noise_s": c_noise_s,
            "rescaled_t": 1000 * c_noise_t,
        }.items():
            yield compare(name, ours, golden.expected(name, precision), precision)


@case("edm_ddpmpp")
@torch.no_grad()
def ddpmpp_channels_last(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """The denoiser in the memory layout that training and sampling use."""
    model = channels_last(denoiser(golden, precision))
    x = golden.input("x", precision).contiguous(memory_format=torch.channels_last)
    augment = golden.augment_labels(precision)
    ours = model.denoise(x, golden.input("sigma", precision), golden.labels(precision), augment)
    yield compare("D", ours, golden.expected("D", precision), precision)


@case("ctm_student_cifar")
@torch.no_grad()
def jumps_channels_last(golden: Golden, precision: torch.dtype) -> Iterator[Check]:
    """The student in the memory layout that training and sampling use."""
    model = channels_last(student(golden, precision))
    x = golden.input("x", precision).contiguous(memory_format=torch.channels_last)
    t, s = golden.input("t", precision), golden.input("s", precision)
    ours = model.G(x, t, s, golden.labels(precision))
    yield compare("G", ours, golden.expected("G", precision), precision)
