"""Networks of golden files: from the constructor arguments in their metadata, strictly loaded.

No dropout is on in a golden set, so models are left in train mode; a case may call ``eval``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctm_core.errors import UserError
from ctm_core.networks import DDPMpp
from ctm_core.trajectory import Trajectory
from ctm_core.verification.golden import Golden

__all__ = ["build", "denoiser", "student", "teacher"]


def build(
    kwargs: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    time_s: bool,
    sigma_data: float = 0.5,
) -> Trajectory:
    """The model that a file's constructor arguments describe.

    Parameters
    ----------
    kwargs
        Arguments of the reference implementation's constructor.
    weights
        Tensors by our names (``model.…``); every one must fit, and none may be missing.
    dtype
        Of the model's parameters.
    time_s
        Whether the network knows the target time s.

    Raises
    ------
    UserError
        For arguments that no network of ours has.
    """
    if kwargs.get("model_type") != "SongUNet":
        raise UserError(f"no network of ours is a {kwargs.get('model_type')}")
    for key, only in (
        ("embedding_type", "positional"),
        ("encoder_type", "standard"),
        ("decoder_type", "standard"),
        ("channel_mult_noise", 1),
    ):
        if kwargs.get(key, only) != only:
            raise UserError(f"no network of ours has {key} = {kwargs[key]}")
    network = DDPMpp(
        resolution=kwargs["img_resolution"],
        channels=kwargs["img_channels"],
        label_dim=kwargs["label_dim"],
        augment_dim=kwargs.get("augment_dim", 0),
        time_s=time_s,
        resample_filter=kwargs.get("resample_filter", (1, 1)),
        **{key: kwargs[key] for key in ("model_channels", "channel_mult", "num_blocks")},
        attn_resolutions=kwargs["attn_resolutions"],
        dropout=kwargs.get("dropout", 0.0),
    )
    model = Trajectory(network, sigma_data).to(dtype)
    model.load_state_dict(dict(weights), strict=True)
    return model


def denoiser(golden: Golden, dtype: torch.dtype) -> Trajectory:
    """The network ``net`` of an EDM file: D, no target time."""
    return build(golden.meta["kwargs"], golden.weights("net", dtype), dtype, time_s=False)


def student(golden: Golden, dtype: torch.dtype, prefix: str = "net") -> Trajectory:
    """A CTM network: ``net`` of ctm_student_cifar, ``student`` or ``ema`` of ctm_training."""
    kwargs = golden.meta["kwargs" if "kwargs" in golden.meta else "student_kwargs"]
    sigma_data = float(golden.meta.get("sigma_data", 0.5))
    return build(kwargs, golden.weights(prefix, dtype), dtype, time_s=True, sigma_data=sigma_data)


def teacher(golden: Golden, dtype: torch.dtype) -> Trajectory:
    """The teacher of ctm_training: one wrapper more in its names than a student has."""
    weights = {
        key.removeprefix("model."): value
        for key, value in golden.weights("teacher", dtype).items()
    }
    return build(golden.meta["teacher_kwargs"], weights, dtype, time_s=False)
