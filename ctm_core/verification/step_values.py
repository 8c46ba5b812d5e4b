"""What every training file of the methods' set stores of a step, and of three optimiser steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ctm_core.training import ema
from ctm_core.verification import METHODS, case
from ctm_core.verification.golden import DOUBLE, METHOD_GRADIENT, Check, Golden, exact

#: Float32 resolves the change of a weight in three steps only so far.
CHANGE = 3e-2


def both_precisions(golden: Golden) -> Iterator[Check]:
    """Whatever the float32 run stored, the float64 run stored too, and gradients in full."""
    single, double = (
        {key.removeprefix(prefix) for key in golden.keys(f"{prefix}.+")}
        for prefix in ("out32/", "out64/")
    )
    wide = {key for key in double - single if "/grad/" in key or key.endswith("/ema_delta_norms")}
    yield exact("values of both precisions", sorted(single), sorted(double - wide))
    ordered = [key.partition(":")[2] for key in golden.meta if key.startswith("grad_order:")]
    lost = [name for name in ordered if f"{name}/grad_norm" not in golden]
    yield exact("cases of which the metadata speaks alone", lost, [])


for _file in sorted(METHODS - {"analytic"}):
    case(_file, (DOUBLE,), on_device=False)(both_precisions)


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by the raw network's names, which the files give with or without ``model.``."""
    return {name.removeprefix("model."): p for name, p in model.named_parameters()}


def gradient_checks(golden: Golden, name: str, model: nn.Module) -> Iterator[Check]:
    """The gradients that a backward pass of case ``name`` left in ``model``, unused ones zero."""
    prefix = f"{golden.out}{name}"
    order = [_bare(key) for key in golden.meta[f"grad_order:{prefix}"]]
    ours = {
        key: torch.zeros_like(p) if p.grad is None else p.grad
        for key, p in parameters(model).items()
    }
    yield exact(f"{name}/grad_order", order, sorted(ours))
    norms = torch.stack([ours[key].norm() for key in order])
    total = golden.expected(f"{name}/grad_norm")
    yield golden.check(f"{name}/grad_norm", norms.norm(), single=METHOD_GRADIENT)
    whole: dict[str, Any] = {"single": METHOD_GRADIENT, "norm": total, "per_sample": False}
    yield golden.check(f"{name}/grad_norms", norms, **whole)
    for key in golden.keys(f"{prefix}/grad/.+"):
        yield golden.check(key.partition("/")[2], ours[_bare(key)], **whole)


def three_steps(
    golden: Golden,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: Callable[[], Tensor | float],
    average: tuple[nn.Module, float] | None = None,
) -> Iterator[Check]:
    """``train3``: ``backward`` fills the gradient and returns the mean loss, once for each step.

    ``average`` is a frozen copy of the model, and the decay by which it follows.
    """
    start = {name: p.detach().clone() for name, p in parameters(model).items()}
    log = []
    for step in range(len(golden.expected("train3/log"))):
        optimizer.zero_grad()
        log.append(float(backward()))
        optimizer.step()
        if average is not None:
            ema.update(average[0], model, average[1], step)
    yield golden.check("train3/log", torch.tensor(log, dtype=DOUBLE), solve=True)
    order = [_bare(name) for name in golden.meta["param_names_order"]]
    yield exact("param_names_order", sorted(order), sorted(start))
    states = {"param": parameters(model)}
    if average is not None:
        states["ema"] = parameters(average[0])
    for kind, state in states.items():
        norms = f"train3/{'' if kind == 'param' else 'ema_'}delta_norms"
        # An average moves by less than float32 resolves.
        if golden.expects(norms) and (kind == "param" or golden.precision == DOUBLE):
            changes = [(state[name].detach() - start[name]).norm() for name in order]
            yield golden.check(norms, torch.stack(changes), single=CHANGE)
        for key in golden.keys(rf"{golden.out}train3/{kind}/.+"):
            options: dict[str, Any] = {"single": METHOD_GRADIENT, "per_sample": False}
            yield golden.check(key.partition("/")[2], state[_bare(key)], **options)


def _bare(key: str) -> str:
    """The raw network's name of a parameter in a key."""
    return key.rpartition("/")[2].removeprefix("model.")
