"""Networks of golden files: from the constructor arguments in their metadata, strictly loaded.

No dropout is on in a golden set, so models are left in train mode; a case may call ``eval``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ctm_core.diffusion.trajectory import Trajectory
from ctm_core.models import networks
from ctm_core.models.networks.constructor_arguments import from_arguments
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
        Arguments of the reference implementation's constructor, EDM's or OpenAI's.
    weights
        Tensors by our names (``model.…``; OpenAI's files leave that prefix out); every one must
        fit, and none may be missing.
    dtype
        Of the model's parameters.
    time_s
        Whether the network knows the target time s.

    Raises
    ------
    UserError
        For arguments that no network of ours has.
    """
    network, resolution, channels, label_dim = from_arguments(kwargs)
    raw = networks.build(
        network, resolution=resolution, channels=channels, label_dim=label_dim, time_s=time_s
    )
    model = Trajectory(raw, sigma_data).to(dtype)
    (model if _wrapped(kwargs) else raw).load_state_dict(dict(weights), strict=True)
    return model


def _wrapped(kwargs: Mapping[str, Any]) -> bool:
    """Whether parameter names start with the wrapper's ``model.``, as all but OpenAI's do."""
    return "image_size" not in kwargs


def denoiser(golden: Golden, dtype: torch.dtype, prefix: str = "net") -> Trajectory:
    """The network ``net`` of an EDM file: D, no target time."""
    return build(golden.meta["kwargs"], golden.weights(prefix, dtype), dtype, time_s=False)


def student(golden: Golden, dtype: torch.dtype, prefix: str = "net") -> Trajectory:
    """A CTM network: ``net`` of a student's file, ``student`` or ``ema`` of ctm_training."""
    kwargs = golden.meta["kwargs" if "kwargs" in golden.meta else "student_kwargs"]
    sigma_data = float(golden.meta.get("sigma_data", 0.5))
    return build(kwargs, golden.weights(prefix, dtype), dtype, time_s=True, sigma_data=sigma_data)


def teacher(golden: Golden, dtype: torch.dtype) -> Trajectory:
    """The teacher of a file.

    In ctm_training it has weights of its own, with one wrapper more in their names than a student
    has; in ctm_student_sony it is the student without the parameters of s.
    """
    if "teacher_kwargs" in golden.meta:
        kwargs = golden.meta["teacher_kwargs"]
        weights = {
            key.removeprefix("model."): value
            for key, value in golden.weights("teacher", dtype).items()
        }
    else:
        kwargs = golden.meta["kwargs"]
        weights = {
            key: value
            for key, value in golden.weights("net", dtype).items()
            if "_s." not in key  # time_embed_s.0.weight, emb_layers_s.1.bias
        }
    return build(kwargs, weights, dtype, time_s=False)
