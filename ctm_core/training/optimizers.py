"""Optimisers by configuration, and their state as flat tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ctm_core.config import Training


def build(
    section: Training,
    parameters: Iterable[Tensor],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """The optimiser of a training section: RAdam as CTM, or Adam as EDM; no weight decay.

    ``section.kernel`` chooses the implementation, which changes rounding alone.
    """
    common: dict[str, Any] = {"lr": section.learning_rate, "betas": betas}
    foreach, fused = section.kernel == "foreach", section.kernel == "fused"
    if section.optimizer == "adam":
        return torch.optim.Adam(parameters, foreach=foreach, fused=fused, **common)
    return radam(section.kernel, parameters, **common)


def radam(kernel: str, parameters: Iterable[Tensor], **options: Any) -> torch.optim.RAdam:
    """RAdam by one of the implementations of ``kernel``."""
    if kernel == "fused":
        return FusedRAdam(parameters, **options)
    return torch.optim.RAdam(parameters, foreach=kernel == "foreach", **options)


def learning_rate(section: Training, step: int) -> float:
    """The learning rate of a step (from 0): linear warm-up, constant, linear decay to the end.

    The released trainings have neither (``warmup_steps`` and ``decay_steps`` 0).
    """
    factor = 1.0
    if step < section.warmup_steps:
        factor = (step + 1) / section.warmup_steps
    if section.decay_steps:
        factor *= min(1.0, (section.steps - step) / section.decay_steps)
    return section.learning_rate * factor


class FusedRAdam(torch.optim.RAdam):
    r"""RAdam by torch's fused kernel of Adam, which reads and writes every number once.

    From the sixth step on (for the usual betas) RAdam (Liu et al. 2020) is Adam with another rate
    and another epsilon: with :math:`c_t = 1 - \beta_2^t`,

    .. math::
       \eta r_t\, \frac{\hat m\, \sqrt{c_t}}{\sqrt{v} + \epsilon}
       = (\eta r_t)\, \frac{\hat m}{\sqrt{v / c_t} + \epsilon / \sqrt{c_t}} .

    The steps before, which take :math:`\eta \hat m`, are torch's own, and so is every step on
    another device than the CPU. State and its names are RAdam's.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all parameters that have a gradient; there is no closure."""
        assert closure is None
        (group,) = self.param_groups
        moving = [p for p in group["params"] if p.grad is not None]
        states = [self.state[p] for p in moving]
        done = {int(state["step"]) if state else 0 for state in states}
        rectified = _rectification(min(done, default=0) + 1, group["betas"][1])
        on_cpu = all(p.device.type == "cpu" for p in moving)
        if len(done) != 1 or rectified is None or not on_cpu:
            super().step()
            return
        beta1, beta2 = group["betas"]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        factor, correction = rectified
        torch._fused_adam_(
            moving,
            [p.grad for p in moving],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=float(group["lr"]) * factor,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"] / math.sqrt(correction),
            amsgrad=False,
            maximize=False,
        )


def _rectification(step: int, beta2: float) -> tuple[float, float] | None:
    """r_t and 1 - beta2^t of RAdam's step (1-based); None where it takes no second moment."""
    correction = 1 - beta2**step
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / correction
    if length <= 5:
        return None
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return math.sqrt(ratio), correction


def flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as flat tensors named ``<parameter index>.<slot>``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{slot}": value for i, slots in state.items() for slot, value in slots.items()}


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what :func:`flatten` returned, in the memory layout of the parameters."""
    groups = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, slot = name.split(".", 1)
        parameter = parameters[int(index)]
        # A copy, laid out as it was: a file holds neither strides nor memory of our own.
        same = value.shape == parameter.shape and value.ndim > 0
        copy = torch.empty_like(parameter, dtype=value.dtype) if same else torch.empty_like(value)
        state.setdefault(int(index), {})[slot] = copy.copy_(value)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
