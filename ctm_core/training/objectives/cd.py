r"""Consistency distillation (Song et al. 2023, algorithm 2): the baseline that CTM generalises.

.. math::
   x_u = \text{Heun step of the teacher from } t_i \text{ to } t_{i+1}, \qquad
   L = d\bigl(f_\theta(x_t, t),\ f_{\bar\theta}(x_u, u)\bigr)

with :math:`f(x, t) = c_\text{skip}\,x + c_\text{out}\,F(c_\text{in}\,x, t)` in the ``cm``
parametrisation (:mod:`ctm_core.diffusion.scalings`), the identity at sigma_min. It is CTM with
k = 1 and s = sigma_min in every draw, a network without s, the EMA's inner map (decay
``target_ema``; 0: the live weights), and no denoising loss.
"""

from __future__ import annotations

from ctm_core.training.objectives.ctm import CtmObjective

TRAITS = {
    "time_s": False,
    "inner": "cm",
    "final_only": True,
    "matching": False,
    "target_inner": False,
    "dsm": False,
}

OBJECTIVE = CtmObjective
