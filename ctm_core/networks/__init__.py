"""Networks by name: :func:`build` makes one from the ``network`` section of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from ctm_core.errors import UserError
from ctm_core.networks.ddpmpp import DDPMpp

if TYPE_CHECKING:
    from ctm_core.config import Network

__all__ = ["ARCHITECTURES", "DDPMpp", "build"]

#: Known architectures; each takes the arguments of :func:`build` and the sizes of the section.
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"ddpmpp": DDPMpp}


def build(
    network: Network,
    *,
    resolution: int,
    channels: int,
    label_dim: int = 0,
    augment_dim: int = 0,
    time_s: bool,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Make a network with fresh weights.

    Parameters
    ----------
    network
        Architecture and sizes.
    resolution, channels
        Side and channels of the images.
    label_dim, augment_dim
        Classes (0: unconditional) and width of the augmentation vector (0: none).
    time_s
        True for students: the network knows the target time s.
    generator
        Source of the weights, a generator on the CPU; default torch's global one.

    Raises
    ------
    UserError
        For an unknown architecture, or sizes it cannot have.
    """
    if network.architecture not in ARCHITECTURES:
        raise UserError(
            f"network: unknown architecture {network.architecture!r}; "
            f"allowed: {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[network.architecture](
        resolution=resolution,
        channels=channels,
        label_dim=label_dim,
        augment_dim=augment_dim,
        time_s=time_s,
        model_channels=network.model_channels,
        channel_mult=tuple(network.channel_mult),
        num_blocks=network.num_blocks,
        attn_resolutions=tuple(network.attn_resolutions),
        dropout=network.dropout,
        generator=generator,
    )
