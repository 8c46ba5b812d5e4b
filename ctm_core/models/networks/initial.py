"""Starting weights. On the meta device nothing is drawn: there the weights come from a file."""

from __future__ import annotations

import torch
from torch import nn

#: Scale of the layers that end a residual branch: at the start each block is nearly the identity.
BRANCH_END_SCALE = 1e-5


def draw_xavier(network: nn.Module, ends: tuple[str, ...]) -> None:
    """Draw the weights of DDPM++ and NCSN++ in place: Xavier-uniform, zero biases.

    Layers whose name ends with one of ``ends`` close a residual branch or the network; they are
    scaled by 1e-5, so the network starts near a linear map of its input. The layers of the target
    time s are Xavier-uniform like the rest, not zero (CTM, section 5.1): a student made from a
    teacher starts as the teacher with a small perturbation.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and not module.weight.is_meta:
            nn.init.xavier_uniform_(module.weight)
            if name.endswith(ends):
                with torch.no_grad():
                    module.weight.mul_(BRANCH_END_SCALE)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def zero(network: nn.Module, ends: tuple[str, ...]) -> None:
    """Zero the layers whose name ends with one of ``ends`` (Dhariwal and Nichol 2021).

    The others keep what PyTorch drew when they were made, as both ADMs have it.
    """
    for name, module in network.named_modules():
        if name.endswith(ends):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
