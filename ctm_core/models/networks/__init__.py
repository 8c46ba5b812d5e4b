"""Networks by name: :func:`build` makes one from the ``network`` section of a configuration.

An architecture is a module of this folder, whose name is the one in the configuration. It sets
``NETWORK`` to a subclass of :class:`RawNetwork`, and ``TRAITS`` to a literal that the
configuration reads without importing the module
(:class:`ctm_core.config.network.ArchitectureTraits`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ctm_core.models.networks.raw import RawNetwork
from ctm_core.runtime.errors import UserError

if TYPE_CHECKING:
    from ctm_core.config import Network

__all__ = ["RawNetwork", "build"]


def build(
    network: Network,
    *,
    resolution: int,
    channels: int,
    label_dim: int = 0,
    time_s: bool,
    augment: bool = False,
) -> RawNetwork:
    """Make a network with fresh weights from torch's global generator.

    Under ``torch.device("meta")`` nothing is drawn or stored: ``load_state_dict(…, assign=True)``
    then gives it the tensors of a file without a second copy.

    Parameters
    ----------
    network
        Architecture and sizes. Its ``augment_dim`` is the teacher's: students have no augmentation
        map, as released.
    resolution, channels, label_dim
        Side and channels of the images, and classes; 0 for an unconditional network.
    time_s
        True for students: the network knows the target time s.
    augment
        Whether one with ``time_s`` has the augmentation map all the same.

    Raises
    ------
    UserError
        For sizes that the architecture cannot have, or a target time where it has none.
    """
    sizes = network.own_sizes
    if time_s:
        if not network.target_time:
            raise UserError(
                f"network: {network.architecture} has no target time s, so it cannot be a student"
            )
        sizes = {k: value for k, value in sizes.items() if augment or k != "augment_dim"}
        sizes["time_s"] = True
    module = importlib.import_module(f"{__name__}.{network.architecture}")
    common = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")
    made: RawNetwork = module.NETWORK(
        resolution=resolution,
        channels=channels,
        label_dim=label_dim,
        **{key: getattr(network, key) for key in common},
        **sizes,
    )
    return made
