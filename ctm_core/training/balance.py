r"""Adaptive loss weights, and the gradient of the weighted sum, without extra backward passes.

A student's loss is :math:`L = L_1 + \sum_i \lambda_i L_i` with, as CTM has it (section 3.3; the
released code's clips),

.. math::
   \lambda_i = c_i \operatorname{clip}\Big(
       \frac{\|\partial L_1 / \partial w\|}{\|\partial L_i / \partial w\| + 10^{-4}},
       \text{low}_i, \text{high}_i \Big)

for one weight tensor w near the network's end (``Trajectory.output_weight``). Every loss reaches w
and all other parameters through the raw output F of one call of the student. So
:math:`\delta_i = \partial L_i / \partial F` is computed once and serves twice: pulled back from F
to w, which is short, for the norm; and, as :math:`\sum_i \lambda_i \delta_i`, as the start of the
one pass through the network that fills the gradient. Losses through the same call share that pass.

(A ratio of the norms of the :math:`\delta_i` themselves would be another weight.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_core.training.distance import at_least_single


class Rule(NamedTuple):
    """How a loss is weighted against the reference: the first loss of a step."""

    scale: float = 1.0  #: factor on the adaptive weight, or the weight itself if not ``adaptive``
    adaptive: bool = True
    #: Clip of the ratio: [0, 1e4] for DSM and [0.01, 10] for the adversarial loss as released.
    low: float = 0.0
    high: float = 1e4


class Loss(NamedTuple):
    """A loss of one call: its mean over the batch, detached, and its gradient at F."""

    name: str
    value: Tensor
    delta: Tensor
    rule: Rule | None = None
    #: Parameters that it reaches beside F, with its gradients there.
    beside: tuple[tuple[Tensor, Tensor], ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        value: Tensor,
        raw: Tensor,
        rule: Rule | None = None,
        *,
        keep: bool = False,
        beside: Iterable[Tensor] = (),
    ) -> Loss:
        """Differentiate ``value`` with respect to F; ``keep`` the graph for another loss.

        ``beside``: parameters of the objective's own modules, which do not act through F.
        """
        own = tuple(beside)
        delta, *gradients = torch.autograd.grad(value, (raw, *own), retain_graph=keep)
        return cls(name, value.detach(), delta, rule, tuple(zip(own, gradients, strict=True)))


class Call(NamedTuple):
    """One call of the student: its raw output F (B, C, H, W) with its graph, and its losses."""

    raw: Tensor
    losses: tuple[Loss, ...]


def adaptive_weight(
    reference: Tensor, other: Tensor, *, low: float = 0.0, high: float = 1e4
) -> Tensor:
    r"""The detached ratio :math:`\|a\| / (\|b\| + 10^{-4})` of two gradients, clipped."""
    ratio = reference.norm() / (other.norm() + 1e-4)
    weight: Tensor = ratio.clamp(low, high).detach()
    return weight


def at_weight(call: Call, loss: Loss, w: Tensor) -> Tensor:
    """Gradient of one loss with respect to w, pulled back from F; in float32 or wider."""
    (gradient,) = torch.autograd.grad(call.raw, w, loss.delta, retain_graph=True)
    return at_least_single(gradient)


def weigh(
    rules: Mapping[str, Rule], gradients: Mapping[str, Tensor], reference: Tensor | None
) -> dict[str, Tensor | float]:
    """Loss weights by name, from gradients at w: of each adaptive loss, and of the reference."""
    weights: dict[str, Tensor | float] = {}
    for name, rule in rules.items():
        if not rule.adaptive:
            weights[name] = rule.scale
            continue
        assert reference is not None, "a loss to be weighted has to follow the reference"
        ratio = adaptive_weight(reference, gradients[name], low=rule.low, high=rule.high)
        weights[name] = rule.scale * ratio
    return weights


def pull_back(call: Call, weights: Mapping[str, Tensor | float], share: float) -> None:
    """Add ``share`` times the gradient of the weighted losses to the parameters' ``.grad``."""
    start = reduce(add, (weights.get(loss.name, 1.0) * loss.delta for loss in call.losses))
    torch.autograd.backward([call.raw], [start * share])
    for loss in call.losses:
        for parameter, gradient in loss.beside:
            part = weights.get(loss.name, 1.0) * share * gradient
            parameter.grad = part if parameter.grad is None else parameter.grad + part
