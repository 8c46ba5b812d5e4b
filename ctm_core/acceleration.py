"""What makes the same mathematics faster: memory layout, kernels, compiled blocks.

Each lever is a key of the training section, so the record and the hash of a training have it, and
changes rounding alone. Their effects: docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ctm_core.config import Training
from ctm_core.networks.layers import UNetBlock
from ctm_core.networks.openai_adm import AttentionBlock, ResBlock

__all__ = ["apply", "compile_blocks", "round_frozen"]

#: Layers that autocast runs in bf16, whatever the dtype of their weights.
ROUNDED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def apply(
    section: Training, learning: Iterable[nn.Module], frozen: Iterable[nn.Module] = ()
) -> None:
    """Prepare the networks of a training in place.

    Parameters
    ----------
    section
        Its keys ``precision``, ``channels_last``, ``attention`` and ``compile`` are read.
    learning
        The student and its averages: their weights stay float32.
    frozen
        Networks whose weights never change and that no file is written of.
    """
    learning, frozen = list(learning), list(frozen)
    if section.precision == "bf16":
        for network in frozen:
            round_frozen(network)
    for network in (*learning, *frozen):
        if section.channels_last:
            network.to(memory_format=torch.channels_last)
        for module in network.modules():
            if isinstance(module, (UNetBlock, AttentionBlock)):
                module.attention_kernel = section.attention
        if section.compile:
            compile_blocks(network)


def round_frozen(network: nn.Module) -> None:
    """Round the weights of convolutions and linear maps to bf16, once and not at every call.

    Autocast rounds them in the same way, so under it nothing changes, to the bit; without it the
    network no longer runs on float32 images.
    """
    for module in network.modules():
        if isinstance(module, ROUNDED):
            module.to(torch.bfloat16)


def compile_blocks(network: nn.Module) -> None:
    """Compile residual and attention blocks, in place and without new names in the state.

    The block that owns the output weight stays as it is: the way from the output F back to that
    weight is short only if autograd sees its parts.
    """
    import torch._dynamo
    import torch._functorch.config

    # One code object serves all blocks, in both modes and for whatever number of rows.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 512)
    torch._dynamo.config.accumulated_recompile_limit = max(
        torch._dynamo.config.accumulated_recompile_limit, 2048
    )
    # Two losses may come through one call, so its graph is walked twice.
    torch._functorch.config.donated_buffer = False
    raw = getattr(network, "model", None)
    last = None if raw is None else raw.output_weight
    for module in network.modules():
        if isinstance(module, (UNetBlock, ResBlock, AttentionBlock)) and not any(
            p is last for p in module.parameters()
        ):
            module.compile(dynamic=True)
