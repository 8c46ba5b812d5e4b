"""CTM with s fixed at sigma_min, without intermediate target times.

The student is CTM's, and so are the solver, the denoising loss and the weights; only j = N - 1
always. Beside ``cd`` it separates what CTM gains by learning every s from what it gains by its
parametrisation and its long solves.
"""

from __future__ import annotations

from ctm_core.training.objectives.ctm import CtmObjective

TRAITS = {"final_only": True}

OBJECTIVE = CtmObjective
