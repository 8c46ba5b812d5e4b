"""Consistency Trajectory Models (Kim et al., ICLR 2024): model, training, sampling, evaluation.

>>> import ctm_core
>>> model = ctm_core.load("zoo:digits-ctm")  # doctest: +SKIP
>>> images = model.sample(64, nfe=1)  # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctm_core.models.model import Model

__all__ = ["load"]


def load(path: str | os.PathLike[str]) -> Model:
    """Load a weight file, or ``zoo:NAME``; see :class:`ctm_core.models.model.Model`."""
    from ctm_core.models.model import Model

    return Model.from_file(path)
