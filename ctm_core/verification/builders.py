"""Networks of golden files: from the constructor arguments in their metadata, strictly loaded.

No dropout is on in a golden set, so models are left in train mode; a case may call ``eval``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import networks
from ctm_core.models.networks.constructor_arguments import from_arguments
from ctm_core.verification.golden import Golden


def build(
    golden: Golden,
    kwargs: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    time_s: bool,
    sigma_data: float = 0.5,
    augment: bool = False,
) -> Trajectory:
    """The model that constructor arguments, EDM's or OpenAI's, describe; they raise UserError.

    ``weights`` are tensors by our names; every one must fit, and none may be missing. With
    ``augment`` a network with s has the augmentation map too.
    """
    network, resolution, channels, label_dim = from_arguments(kwargs)
    raw = networks.build(
        network,
        resolution=resolution,
        channels=channels,
        label_dim=label_dim,
        time_s=time_s,
        augment=augment,
    )
    model = Trajectory(raw, sigma_data).to(golden.device, golden.precision)
    # OpenAI's names lack the wrapper's ``model.``.
    (raw if "image_size" in kwargs else model).load_state_dict(dict(weights), strict=True)
    return model


def denoiser(golden: Golden, prefix: str = "net") -> Trajectory:
    """The network ``net`` of an EDM file, or that of another prefix: D, no target time."""
    sigma_data = float(golden.meta.get("sigma_data", 0.5))
    weights = golden.weights(prefix)
    return build(golden, golden.meta["kwargs"], weights, time_s=False, sigma_data=sigma_data)


def student(golden: Golden, prefix: str = "net") -> Trajectory:
    """A CTM network: ``net`` of a student's file, ``student`` or ``ema`` of ctm_training."""
    kwargs = golden.meta["kwargs" if "kwargs" in golden.meta else "student_kwargs"]
    sigma_data = float(golden.meta.get("sigma_data", 0.5))
    weights = golden.weights(prefix)
    return build(golden, kwargs, weights, time_s=True, sigma_data=sigma_data)


def teacher(golden: Golden) -> Trajectory:
    """The teacher of a file.

    In ctm_training it has weights of its own, with one wrapper more in their names than a student
    has; in ctm_student_sony it is the student without the parameters of s.
    """
    if kwargs := golden.meta.get("teacher_kwargs"):
        weights = {k.removeprefix("model."): v for k, v in golden.weights("teacher").items()}
    else:
        kwargs = golden.meta["kwargs"]
        # without time_embed_s.0.weight, emb_layers_s.1.bias
        weights = {k: v for k, v in golden.weights("net").items() if "_s." not in k}
    return build(golden, kwargs, weights, time_s=False)
