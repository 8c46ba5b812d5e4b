"""Networks through ``torch.compile``: the same mathematics in fewer and larger kernels.

Compiled are the networks that training never changes, the target, and the student unless a loss
weight is adaptive: its gradient at one weight near the output then needs a short way back, and a
compiled network has one backward pass, the whole; nor has it a derivative in forward mode. Shapes
are few (:mod:`ctm_core.training.rows`), because each is compiled by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ctm_core.runtime.errors import UserError
from ctm_core.training.acceleration import entries
from ctm_core.training.distance import Distance
from ctm_core.training.distances._vgg import VggDistance
from ctm_core.training.objective import Objective

BACKEND = "inductor"
#: Modes of torch.compile that replay CUDA graphs.
WITH_GRAPHS = ("reduce-overhead", "max-autotune")
#: Versions of one network: row counts, with and without gradient, for each of the networks that
#: share its code. Beyond, torch would run it uncompiled.
VERSIONS = 64


def apply(mode: str | None, objective: Objective) -> None:
    """Compile an objective's networks in place, on the device they are on.

    Raises
    ------
    UserError
        If torch's compiler does not work on this machine.
    """
    device = objective.student.output_weight.device
    mode = mode or ("reduce-overhead" if device.type == "cuda" else "default")
    torch._dynamo.config.recompile_limit = VERSIONS
    # Both losses of a call go back through the outer map, so its graph is used twice.
    torch._functorch.config.donated_buffer = False
    # Dropout as torch's generator draws it, so that seeds mean what they mean without compile.
    torch._inductor.config.fallback_random = True
    _check_compiler(device)
    for network in compiled_networks(objective):
        for module, name in _entries(network):
            setattr(module, name, _compiled(getattr(module, name), mode, device))


def compiled_networks(objective: Objective) -> list[nn.Module]:
    """The networks that are compiled."""
    networks = objective.frozen()
    target = getattr(objective, "target", None)
    if target is not None:
        networks.append(target)
    adaptive = any(rule.adaptive for rule in objective.rules().values())
    if not adaptive and not objective.tangents:
        networks.append(objective.student)
    return networks


def _entries(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """Methods to compile: of a distance the features alone, the rest is a graph of its own."""
    if isinstance(network, VggDistance):
        return [(network, "features")]
    return [] if isinstance(network, Distance) else entries(network)


def _compiled(work: Callable[..., Any], mode: str, device: torch.device) -> Callable[..., Any]:
    known = mode if BACKEND == "inductor" else None
    fast: Callable[..., Any] = torch.compile(work, backend=BACKEND, mode=known, dynamic=False)
    if device.type != "cuda" or mode not in WITH_GRAPHS:
        return fast

    @wraps(work)
    def copied(*arguments: Any, **options: Any) -> Any:
        # The next replay overwrites what a graph returns.
        out = fast(*arguments, **options)
        return out.clone() if isinstance(out, Tensor) else [part.clone() for part in out]

    return copied


def _check_compiler(device: torch.device) -> None:
    try:
        torch.compile(_twice, backend=BACKEND, dynamic=False)(torch.ones(2, device=device))
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"compile: torch's compiler does not work on this machine ({' '.join(reason[:1])}); "
            "install a C++ compiler (the package g++), or set compile to false"
        ) from error


def _twice(x: Tensor) -> Tensor:
    return 2 * x
