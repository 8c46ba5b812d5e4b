"""Training objectives, one file each.

An objective is a class with a module-level name ``OBJECTIVE`` in a file of this folder
(:mod:`ctm_core.training.objective` is its interface), and its traits, a literal ``TRAITS``
(:mod:`ctm_core.config.objective_traits`); the file's name is the objective's name in
configurations.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ctm_core.config.objective_traits import objectives
from ctm_core.runtime.errors import UserError

if TYPE_CHECKING:
    from ctm_core.training.objective import StudentObjective

__all__ = ["find"]


def find(name: str) -> type[StudentObjective]:
    """The class of the objective called ``name``; raises UserError if there is none."""
    if name not in objectives():
        raise UserError(f"no objective {name!r}; there are: {', '.join(objectives())}")
    kind: type[StudentObjective] = importlib.import_module(f"{__name__}.{name}").OBJECTIVE
    return kind
