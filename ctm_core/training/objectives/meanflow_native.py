"""MeanFlow in its authors' parametrisation, u = F(z, t, t - r), for replication.

Such a network is no denoiser's: it starts from random weights. Everything else is
:mod:`ctm_core.training.objectives.meanflow`.
"""

from __future__ import annotations

from ctm_core.training.objectives.meanflow import MeanFlowObjective

TRAITS = {"like": "meanflow", "inner": "native", "initial": "random", "zero_s": False}

OBJECTIVE = MeanFlowObjective
