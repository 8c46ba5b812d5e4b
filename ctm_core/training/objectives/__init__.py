"""Training objectives, one file each.

An objective is a class with a module-level name ``OBJECTIVE`` in a file of this folder
(:mod:`ctm_core.training.objective` is its interface); the file's name is the objective's name in
configurations.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctm_core.training.objectives.ctm import CtmObjective

__all__ = ["find", "names"]


def names() -> list[str]:
    """Names of the objectives that students can be trained with: files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> type[CtmObjective]:
    """The class of the objective called ``name``; it takes what :class:`CtmObjective` takes.

    Raises
    ------
    UserError
        If there is no such objective.
    """
    from ctm_core.runtime.errors import UserError

    if name not in names():
        raise UserError(f"no objective {name!r}; there are: {', '.join(names())}")
    found: type[CtmObjective] = importlib.import_module(f"{__name__}.{name}").OBJECTIVE
    return found
