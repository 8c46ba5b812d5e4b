"""What makes the same mathematics faster: memory layout, kernels, rounded weights.

Each lever is a key of the training section, so the record and the hash of a training have it, and
changes rounding alone. Their effects: docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import nn

from ctm_core.config import Training
from ctm_core.models.networks.layers import Recomputing, UNetBlock
from ctm_core.models.networks.openai_adm import AttentionBlock

#: Layers that autocast runs in bf16, whatever the dtype of their weights.
ROUNDED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


Network = TypeVar("Network", bound=nn.Module)


def channels_last(network: Network) -> Network:
    """The network itself, its weights laid out with channels last."""
    # Stubs of torch 2.13 do not know this argument.
    moved: Network = cast(Any, network).to(memory_format=torch.channels_last)
    return moved


def apply(
    section: Training, learning: Iterable[nn.Module], frozen: Iterable[nn.Module] = ()
) -> None:
    """Prepare the networks of a training in place.

    The weights of those that learn, the student and its averages, stay float32; ``frozen`` are
    networks whose weights never change and that no file is written of.
    """
    learning, frozen = list(learning), list(frozen)
    if section.precision == "bf16":
        for network in frozen:
            round_frozen(network)
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
