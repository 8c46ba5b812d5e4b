"""EDM's deterministic sampler (Karras et al. 2022, algorithm 1); NFE 2n - 1 on n points."""

from __future__ import annotations

from torch import Tensor

from ctm_core.diffusion.solvers import Denoiser, euler_step, heun_step

TRAITS = {"jumps": False, "evaluations_per_step": 2, "label": "Heun"}


def step(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """A Heun step from t to s; an Euler step to 0."""
    return (heun_step if s > 0 else euler_step)(denoiser, x, t, s)
