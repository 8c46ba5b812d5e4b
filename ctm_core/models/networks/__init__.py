"""Networks by name: :func:`build` makes one from the ``network`` section of a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ctm_core.models.networks.adm import ADM
from ctm_core.models.networks.ddpmpp import DDPMpp
from ctm_core.models.networks.ncsnpp import NCSNpp
from ctm_core.models.networks.openai_adm import OpenAIADM
from ctm_core.models.networks.raw import RawNetwork
from ctm_core.runtime.errors import UserError

if TYPE_CHECKING:
    from ctm_core.config import Network

__all__ = ["ADM", "ARCHITECTURES", "DDPMpp", "NCSNpp", "OpenAIADM", "RawNetwork", "build"]

#: Known architectures; each takes the arguments of :func:`build` and the sizes of the section.
ARCHITECTURES: dict[str, Callable[..., RawNetwork]] = {
    "adm": ADM,
    "ddpmpp": DDPMpp,
    "ncsnpp": NCSNpp,
    "openai_adm": OpenAIADM,
}

#: Keys of the section that are given to an architecture only where they are set.
OPTIONAL = ("channel_mult_emb", "resample_filter", "num_head_channels", "num_heads")


def build(
    network: Network,
    *,
    resolution: int,
    channels: int,
    label_dim: int = 0,
    time_s: bool,
    generator: torch.Generator | None = None,
) -> RawNetwork:
    """Make a network with fresh weights.

    Under ``torch.device("meta")`` nothing is drawn or stored: ``load_state_dict(…, assign=True)``
    then gives it the tensors of a file without a second copy.

    Parameters
    ----------
    network
        Architecture and sizes. Its ``augment_dim`` is the teacher's: students have no augmentation
        map, as released.
    resolution, channels
        Side and channels of the images.
    label_dim
        Classes; 0 for an unconditional network.
    time_s
        True for students: the network knows the target time s.
    generator
        Source of the weights, a generator on the CPU; default torch's global one.

    Raises
    ------
    UserError
        For an unknown architecture, sizes it cannot have, or a target time where it has none.
    """
    if network.architecture not in ARCHITECTURES:
        raise UserError(
            f"network: unknown architecture {network.architecture!r}; "
            f"allowed: {', '.join(sorted(ARCHITECTURES))}"
        )
    sizes = {key: getattr(network, key) for key in OPTIONAL if getattr(network, key) is not None}
    if time_s:
        if not network.target_time:
            raise UserError(
                f"network: {network.architecture} has no target time s, so it can be no "
                "student's; use ddpmpp or openai_adm"
            )
        sizes["time_s"] = True
    elif network.augment_dim is not None:
        sizes["augment_dim"] = network.augment_dim
    return ARCHITECTURES[network.architecture](
        resolution=resolution,
        channels=channels,
        label_dim=label_dim,
        model_channels=network.model_channels,
        channel_mult=tuple(network.channel_mult),
        num_blocks=network.num_blocks,
        attn_resolutions=tuple(network.attn_resolutions),
        dropout=network.dropout,
        generator=generator,
        **sizes,
    )
