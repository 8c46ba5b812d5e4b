"""Our code against numbers of the reference implementations: what ``ctm verify`` runs.

A *case* is a function that takes a golden file for one precision and yields
:class:`~ctm_core.verification.golden.Check` objects. Cases live in the modules of this folder, one
theme each, and register themselves by :func:`case`; a new module needs no other mention.

>>> @case("edm_adm")  # doctest: +SKIP
... def adm(golden: Golden) -> Iterator[Check]:
...     yield golden.check("D", model.denoise(x, t))
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import torch

from ctm_core.runtime.errors import UserError
from ctm_core.training.acceleration import bf16
from ctm_core.verification.golden import DOUBLE, SINGLE, Check, Folder, Golden, lowered_check

__all__ = ["Case", "Result", "case", "cases", "check", "uncovered"]

Function = Callable[[Golden], Iterator[Check]]

#: Files of the set of few-step methods; all others are of the first set, that of EDM and CTM.
METHODS = frozenset({"analytic", "architectures", "ayf", "ect", "imm", "meanflow", "scm", "tcm"})


class Case(NamedTuple):
    """A function that checks a golden file at some precisions."""

    file: str
    function: Function
    precisions: tuple[torch.dtype, ...]
    on_device: bool = True  #: false for draws and grids, which a training makes on the CPU too

    @property
    def name(self) -> str:
        """``<file>:<function>``."""
        return f"{self.file}:{self.function.__name__}"

    @property
    def lowered(self) -> bool:
        """Whether it also runs under bf16: not the methods, whose tangents need float32."""
        return self.on_device and self.file not in METHODS


class Result(NamedTuple):
    """The checks of a case at one precision; ``problem`` is set if it could not run to its end."""

    case: Case
    precision: torch.dtype
    checks: tuple[Check, ...]
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """True if it ran, checked something, and everything was within tolerance."""
        return self.problem is None and bool(self.checks) and all(c.passed for c in self.checks)

    @property
    def reason(self) -> str:
        """Why it did not pass: what stopped it, or its worst check."""
        worst = max(self.checks, key=lambda check: check.ratio, default="nothing was checked")
        return str(worst) if self.problem is None else self.problem

    @property
    def severity(self) -> float:
        """The worst error as a share of its tolerance; infinite if the case did not run."""
        if self.problem is not None:
            return math.inf
        return max((check.ratio for check in self.checks), default=math.inf)


_cases: list[Case] = []


def case(
    file: str, precisions: tuple[torch.dtype, ...] = (SINGLE, DOUBLE), *, on_device: bool = True
) -> Callable[[Function], Function]:
    """Register a function as a case of the golden file called ``file``."""

    def register(function: Function) -> Function:
        _cases.append(Case(file, function, precisions, on_device))
        return function

    return register


def cases(folder: Folder | None = None) -> list[Case]:
    """Every case of every module of this folder, by file; or those of the sets that one holds.

    A folder with any file of a set is held to the whole of it.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    found = sorted(_cases, key=lambda registered: registered.file)
    if folder is None:
        return found
    held = {done.file in METHODS for done in found if done.file in folder.names()} or {False}
    return [done for done in found if (done.file in METHODS) in held]


def check(
    checked: Case, folder: Folder, precision: torch.dtype, device: torch.device | None = None
) -> Result:
    """Run one case, gradients on and torch's default dtype float32.

    ``torch.bfloat16`` as precision means float32 under autocast, by :data:`.golden.BFLOAT16`.
    """
    device = (device if checked.on_device else None) or torch.device("cpu")
    lowered = precision == torch.bfloat16
    checks: list[Check] = []
    problem = None
    default = torch.get_default_dtype()
    torch.set_default_dtype(SINGLE)
    try:
        golden = folder.load(checked.file).at(SINGLE if lowered else precision, device)
        rounded = bf16(device) if lowered else nullcontext()
        with torch.enable_grad(), rounded:
            for done in checked.function(golden):
                if not lowered:
                    checks.append(done)
                elif (kept := lowered_check(done)) is not None:
                    checks.append(kept)
    except UserError as error:
        problem = str(error)
    except Exception as error:  # a case that cannot run has not passed, whatever stopped it
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        torch.set_default_dtype(default)
    return Result(checked, precision, tuple(checks), problem)


def uncovered(folder: Folder) -> dict[str, list[str]]:
    """Tensors that no case has read, by file; a file of which nothing was read is always named."""
    files = {name: folder.load(name) for name in folder.names()}
    return {
        name: golden.unused()
        for name, golden in files.items()
        if golden.unused() or not golden.used
    }
