"""Optimisers by configuration, their state as flat tensors, and the precision they work in."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ctm_core.config import Training

__all__ = ["build", "flatten", "resolve_precision", "restore"]


def build(
    section: Training,
    parameters: Iterable[Tensor],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
) -> torch.optim.Optimizer:
    """The optimiser of a training section: RAdam as CTM, or Adam as EDM; no weight decay.

    ``section.kernel`` chooses how it walks over the tensors, which changes rounding alone.
    """
    how: dict[str, Any] = {"foreach": section.kernel == "foreach"}
    rate = section.learning_rate
    if section.optimizer == "adam":
        if section.kernel == "fused":
            how = {"fused": True}
        return torch.optim.Adam(parameters, lr=rate, betas=betas, **how)
    return torch.optim.RAdam(parameters, lr=rate, betas=betas, **how)


def flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as flat tensors named ``<parameter index>.<slot>``."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{slot}": value for i, slots in state.items() for slot, value in slots.items()}


def restore(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`flatten` gave, in the memory layout of the parameters."""
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


def resolve_precision(precision: str, device: torch.device | str = "cpu") -> str:
    """`auto` becomes bf16 where the device computes in it natively, else fp32."""
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = platform.processor()
    return "bf16" if "amx_bf16" in flags else "fp32"
