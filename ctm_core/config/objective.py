"""What the configuration has to know of each training objective."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

#: Modules of ctm_core.objectives that are no objective of a student.
OTHERS = ("__init__", "adversarial", "dsm")


@dataclass(frozen=True)
class Traits:
    """Which keys an objective has, and what its models can do.

    Attributes
    ----------
    time_s
        Whether the network knows the target time s.
    teacher
        Whether it integrates a teacher. Without one, students start from random weights unless
        the file says otherwise.
    matching
        Whether u and k are a choice; otherwise the solver goes one step of the grid (local).
    inner
        Whether its target has an inner map, so ``target_inner``.
    dsm
        Whether denoising score matching can stand beside it.
    scratch
        Whether its solver is made of its own average, so ``scratch_solver``.
    sigma_min_only
        Whether its models jump to sigma_min alone, so are sampled with gamma = 1.
    """

    time_s: bool = True
    teacher: bool = True
    matching: bool = True
    inner: bool = True
    dsm: bool = True
    scratch: bool = False
    sigma_min_only: bool = False


_CONSISTENCY = {
    "time_s": False,
    "matching": False,
    "inner": False,
    "dsm": False,
    "sigma_min_only": True,
}

#: The objectives of the paper and of its baselines.
TRAITS = {
    "ctm": Traits(),
    "ctm_scratch": Traits(teacher=False, scratch=True),
    "ctm_s0": Traits(sigma_min_only=True),
    "cd": Traits(**_CONSISTENCY),
    "ct": Traits(teacher=False, **_CONSISTENCY),
}


def objectives() -> list[str]:
    """Names of all objectives: those above, and any other file of ctm_core/objectives."""
    # Listed and not imported: objectives need torch, and stand above the configuration.
    files = (Path(__file__).parents[1] / "objectives").glob("[!_]*.py")
    return sorted({*TRAITS, *(file.stem for file in files)} - set(OTHERS))


def traits(name: str) -> Traits:
    """What is known of an objective; a file of ours that is not listed is taken to be like ctm."""
    return TRAITS.get(name, Traits())
