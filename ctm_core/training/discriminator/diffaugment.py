r"""Differentiable augmentation before the discriminator (Zhao et al. 2020, "DiffAugment").

The policy "color, translation, cutout" of CTM's adversarial term, every part always applied, at
the images' own resolution, in [-1, 1] and unclamped, to each sample by its own parameters:

=============  ===================================================  ===========================
part           formula                                              law
=============  ===================================================  ===========================
brightness     :math:`x + b`                                        b uniform on (-1/2, 1/2)
saturation     :math:`(x - m)\,a + m`, m the mean over channels     a uniform on (0, 2)
contrast       :math:`(x - m)\,c + m`, m the mean over the image    c uniform on (1/2, 3/2)
translation    :math:`y_{ij} = x_{i + p,\, j + q}`, 0 outside       p, q uniform on {-r … r}
cutout         a square of side l set to 0                          offsets uniform, see below
=============  ===================================================  ===========================

with :math:`r = \lfloor H/8 + 1/2 \rfloor` and :math:`l = \lfloor H/5 + 1/2 \rfloor`. The square
covers those of the rows :math:`o - \lfloor l/2 \rfloor + \{0, …, l-1\}` that the image has, for an
offset o uniform on :math:`\{0, …, H - (l \bmod 2)\}`; columns likewise. Gradients pass to the
images through everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ctm_core.training.rows import send

SHIFT = 0.125  # largest translation, and
CUTOUT = 0.2  # side of the square, as shares of the image's side


class DiffAugment(NamedTuple):
    """Parameters of a batch: seven tensors of shape (B,), floats first, then int64.

    ``translation_x`` and ``offset_x`` act on rows, ``translation_y`` and ``offset_y`` on columns.
    """

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    translation_x: Tensor
    translation_y: Tensor
    offset_x: Tensor
    offset_y: Tensor


def draw(
    uniform: Callable[[str], Tensor], size: tuple[int, int], stream: str = "diffaugment"
) -> DiffAugment:
    """Parameters by their laws, for images of a height and width.

    ``uniform`` maps the name of a stream to one uniform number in (0, 1) per sample, shape (B,),
    such as :meth:`ctm_core.training.batches.Batch.uniform`; ``stream`` begins the names, so that
    real and generated images, or two feature networks, can have draws of their own.
    """

    def integer(name: str, low: int, count: int) -> Tensor:
        return low + (uniform(f"{stream}/{name}") * count).floor().long()

    reach = [_rounded(SHIFT * side) for side in size]
    places = [side + 1 - _rounded(CUTOUT * side) % 2 for side in size]
    return DiffAugment(
        brightness=uniform(f"{stream}/brightness") - 0.5,
        saturation=uniform(f"{stream}/saturation") * 2,
        contrast=uniform(f"{stream}/contrast") + 0.5,
        translation_x=integer("translation_x", -reach[0], 2 * reach[0] + 1),
        translation_y=integer("translation_y", -reach[1], 2 * reach[1] + 1),
        offset_x=integer("offset_x", 0, places[0]),
        offset_y=integer("offset_y", 0, places[1]),
    )


def diffaugment(images: Tensor, parameters: DiffAugment) -> Tensor:
    """Augment images (B, C, H, W), floating, in their dtype and on their device."""
    brightness, saturation, contrast = (
        value.to(images, non_blocking=True).view(-1, 1, 1, 1) for value in parameters[:3]
    )
    x = images + brightness
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * saturation + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * contrast + mean
    x = _shifted(x, 2, parameters.translation_x)
    x = _shifted(x, 3, parameters.translation_y)
    rows = _covered(x.shape[2], parameters.offset_x, x.device)
    columns = _covered(x.shape[3], parameters.offset_y, x.device)
    hole = rows[:, None, :, None] & columns[:, None, None, :]
    return x.masked_fill(hole, 0.0)


def _rounded(value: float) -> int:
    return int(value + 0.5)


def _shifted(x: Tensor, axis: int, by: Tensor) -> Tensor:
    """y[..., i, ...] = x[..., i + by, ...] along an axis, zero where i + by lies outside."""
    side = x.shape[axis]
    source = torch.arange(side, device=x.device) + send(by, x.device)[:, None]
    shape = [len(x), 1, 1, 1]
    shape[axis] = side
    inside = ((source >= 0) & (source < side)).view(shape)
    index = source.clamp(0, side - 1).view(shape)
    return torch.take_along_dim(x, index, dim=axis) * inside


def _covered(side: int, offset: Tensor, device: torch.device) -> Tensor:
    """Rows (or columns) that the square covers: shape (B, side), bool."""
    length = _rounded(CUTOUT * side)
    place = torch.arange(side, device=device) - (send(offset, device)[:, None] - length // 2)
    return (place >= 0) & (place < length)
