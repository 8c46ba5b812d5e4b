"""What makes the same mathematics faster: memory layout, kernels, rounded weights.

Each lever is a key of the training section, so the record and the hash of a training have it, and
changes rounding alone. Their effects: docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ctm_core.config import Training
from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models.networks.layers import Recomputing, UNetBlock, channels_last
from ctm_core.models.networks.openai_adm import AttentionBlock

#: Layers that autocast runs in bf16, whatever the dtype of their weights.
ROUNDED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
#: Whether autocast may cache rounded weights. Older versions of torch give those that were rounded
#: under ``no_grad`` to later passes that need their gradients.
CACHED = torch.__version__ >= "2.13"


def apply(
    section: Training, learning: Iterable[nn.Module], frozen: Iterable[nn.Module] = ()
) -> None:
    """Prepare the networks of a training in place.

    The weights of those that learn, the student and its averages, stay float32; ``frozen`` are
    networks whose weights never change and that no file is written of.
    """
    # By default torch lets convolutions use TF32, but not other products.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = section.tf32
    learning, frozen = list(learning), list(frozen)
    for network in frozen:
        if "bf16" in (section.precision, section.frozen_precision):
            round_frozen(network)
        if section.frozen_precision == "bf16":
            run_in_bf16(network)
    for network in (*learning, *frozen):
        if section.channels_last:
            channels_last(network)
        for module in network.modules():
            if isinstance(module, (UNetBlock, AttentionBlock)):
                module.attention_kernel = section.attention
            if isinstance(module, Recomputing):
                module.recompute = section.recompute


def round_frozen(network: nn.Module) -> None:
    """Round the weights of convolutions and linear maps to bf16, once and not at every call.

    Autocast rounds them in the same way, so under it nothing changes, to the bit; without it the
    network no longer runs on float32 images.
    """
    for module in network.modules():
        if isinstance(module, ROUNDED):
            module.to(torch.bfloat16)


def run_in_bf16(network: nn.Module) -> None:
    """Let a frozen network compute under autocast whoever calls it; what it returns is float32."""
    for module, name in entries(network):
        setattr(module, name, _in_bf16(getattr(module, name)))


def entries(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """The methods by which others call a network: of its modules, by name."""
    if isinstance(network, Trajectory):
        return [(network.model, "forward")]
    if isinstance(network, nn.ModuleList):  # each part by itself
        return [(part, "forward") for part in network]
    several = hasattr(network, "forward_intermediates")
    return [(network, "forward_intermediates" if several else "forward")]


def _in_bf16(work: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(work)
    def wrapped(x: Tensor, *others: Any, **options: Any) -> Any:
        with bf16(x.device):
            out = work(x, *others, **options)
        return out.float() if isinstance(out, Tensor) else [part.float() for part in out]

    return wrapped


def autocast(section: Training, device: torch.device) -> AbstractContextManager[object]:
    """The precision of a training's forward passes."""
    return bf16(device) if section.precision == "bf16" else nullcontext()


def bf16(device: torch.device) -> AbstractContextManager[object]:
    """Run convolutions and products in bf16, and round their weights on the way."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=CACHED)


def full_precision(device: str) -> AbstractContextManager[object]:
    """Suspend autocast, on devices that have it."""
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()  # the device "meta"
