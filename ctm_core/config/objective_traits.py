"""What the configuration has to know of each training objective."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "training" / "objectives"

#: Modules of ctm_core.training.objectives that are no objective of a student.
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
    """Names of all objectives: those above, and any other file of ctm_core/training/objectives."""
    # Listed and not imported: objectives need torch, and stand above the configuration.
    files = (file.stem for file in FOLDER.glob("[!_]*.py"))
    return sorted({*TRAITS, *files} - set(OTHERS))


def traits(name: str) -> Traits:
    """What is known of an objective: from the list above, or from its file.

    A file says ``time_s = False``, ``uses_teacher = False`` or ``final_only = True`` in its class;
    it is read, not run, so what a class inherits from another file has to be repeated.
    """
    if name in TRAITS:
        return TRAITS[name]
    file = FOLDER / f"{name}.py"
    said = _class_attributes(file.read_text(encoding="utf-8")) if file.exists() else {}
    return Traits(
        time_s=said.get("time_s", True),
        teacher=said.get("uses_teacher", True),
        sigma_min_only=said.get("final_only", False),
    )


def _class_attributes(source: str) -> dict[str, bool]:
    """Attributes that classes of a module set to True or False."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        for line in node.body if isinstance(node, ast.ClassDef) else ():
            if not isinstance(line, ast.Assign) or not isinstance(line.value, ast.Constant):
                continue
            for target in line.targets:
                if isinstance(target, ast.Name) and isinstance(line.value.value, bool):
                    found[target.id] = line.value.value
    return found
