r"""The raw network and its derivative along a path in :math:`\ln\sigma`, by forward-mode AD.

For a path x(ln σ) through the images, every continuous-time objective needs

.. math::
   J = \frac{\mathrm d}{\mathrm d \ln\sigma} F\bigl(c_\text{in}\,x,\ c_\text{noise}(\sigma),\
       c_\text{noise}(\sigma_s)\bigr), \qquad \sigma_s \text{ fixed.}

A path is given by the raw output :math:`F_v` whose flow it follows: in EDM's parametrisation

.. math::
   \frac{\mathrm d (c_\text{in} x)}{\mathrm d \ln\sigma} = -c\,\tilde s\,F_v, \qquad
   \frac{\mathrm d c_\text{noise}}{\mathrm d \ln\sigma} = \tfrac14, \qquad
   c = \frac{\sigma_d}{\sqrt{\sigma^2 + \sigma_d^2}},\quad
   \tilde s = \frac{\sigma}{\sqrt{\sigma^2 + \sigma_d^2}},

with F_v the teacher's output for the flow of the teacher, or :func:`pair_output` for a pair of
image and noise. Unlike x - D, it does not cancel at small σ, and nothing overflows at either end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ctm_core.diffusion.scalings import path_slopes
from ctm_core.diffusion.trajectory import Trajectory, per_image, times_like
from ctm_core.runtime.errors import UserError

#: Without types in torch.
forward_ad: Any = torch.autograd.forward_ad


@torch.no_grad()
def tangent(
    model: Trajectory,
    x: Tensor,
    t: Tensor | float,
    s: Tensor | float | None,
    path: Tensor,
    y: Tensor | None = None,
    augment_labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """F and J at (x, t, s), without a graph.

    They are computed in the dtype of ``x`` also under autocast, where a group norm would return
    bf16 with a float32 tangent; torch's fused attention has no forward mode and is replaced by
    its formula, and a compiled network runs uncompiled. torch's generators are left as they were,
    so a call of the network right after this draws the same dropout masks.

    Parameters
    ----------
    model, x, t, s, y, augment_labels
        As :meth:`.trajectory.Trajectory.raw` takes them; the derivative in s, and in the labels,
        is not part of J.
    path
        F_v, shaped like ``x``.

    Raises
    ------
    UserError
        If a part of the network has no forward-mode derivative.
    """
    image, c_noise, c_noise_s, *labels = model.inputs(x, t, s, y, augment_labels)
    slopes = path_slopes(model.parametrisation, times_like(t, x), model.sigma_data)
    with (
        same_masks(x),
        torch.autocast(x.device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        _PlainNorms(),
        forward_ad.dual_level(),
    ):

        def dual(value: Tensor, slope: Tensor) -> Tensor:
            made: Tensor = forward_ad.make_dual(value, slope.to(value).expand_as(value))
            return made

        arguments = (
            forward_ad.make_dual(image, per_image(slopes.image, path)),
            dual(c_noise, slopes.t),
            None if c_noise_s is None else dual(c_noise_s, slopes.s),
        )
        try:
            out = model.model(*arguments, *labels)
        except NotImplementedError as error:
            raise UserError(
                f"network: {type(model.model).__name__} has no forward-mode derivative, which "
                "this objective needs; choose another architecture or objective"
            ) from error
        raw, derivative = forward_ad.unpack_dual(out)
    assert derivative is not None, "the network's output does not depend on its inputs"
    return raw.to(x.dtype), derivative.to(x.dtype)


def pair_output(
    name: str, x0: Tensor, noise: Tensor, t: Tensor, sigma_data: float = 0.5
) -> Tensor:
    r"""F_v of the path x_0 + σ ξ, whose image and noise stay: no teacher is needed.

    :math:`\tilde s\,x_0/\sigma_d - c\,\xi`; in the ``native`` parametrisation :math:`\xi - x_0`.
    """
    if name == "native":
        return noise - x0
    root = (t**2 + sigma_data**2).sqrt()
    return per_image(t / root / sigma_data, x0) - per_image(sigma_data / root, noise)


@contextmanager
def same_masks(x: Tensor) -> Iterator[None]:
    """What is drawn inside, such as dropout masks, is drawn again by what follows."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices, device_type=x.device.type):
        yield


class _PlainNorms(TorchFunctionMode):
    """Group norms of contiguous images: torch differentiates no others."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        if function is functional.group_norm:
            arguments = (arguments[0].contiguous(), *arguments[1:])
        return function(*arguments, **(options or {}))
