"""Euler's method along the ODE (DDIM's trajectory); NFE n on n points."""

from ctm_core.diffusion.solvers import euler_step as step

__all__ = ["step"]

TRAITS = {"jumps": False, "label": "Euler"}
