"""Euler's method along the ODE (DDIM's trajectory); NFE n on n points."""

from __future__ import annotations

from torch import Tensor

from ctm_core.diffusion.solvers import Denoiser, euler_step

TRAITS = {"jumps": False, "label": "Euler"}


def step(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """An Euler step from t to s."""
    return euler_step(denoiser, x, t, s)
