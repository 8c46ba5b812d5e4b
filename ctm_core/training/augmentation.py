r"""EDM's augmentation of training images (Karras et al. 2022, appendix F.2; 2020, appendix B).

Nine parameters describe what was done to an image; a network that is given them as
``augment_labels`` learns the unaugmented images at labels of zero:

==========  =========================================  =========================================
labels      transform                                  drawn as
==========  =========================================  =========================================
0           flip left and right                        a fair coin, always
1           flip up and down                           a fair coin, with probability p
2           scale by :math:`2^{0.2 w}`                 w normal, with probability p
3, 4        rotate by θ: labels cos θ - 1, sin θ       θ uniform on (-π, π), with probability p
5, 6        scale by :math:`2^{0.2 w}` along the axis  w normal, with probability p; r uniform on
            r and by its inverse across it: labels     (-π, π) or, half the time, zero
            w cos r, w sin r
7, 8        translate by 0.125 w of the size           two normal w, with probability p
==========  =========================================  =========================================

After the exact flips the rest is one affine map :math:`G = T A(r, w) R(θ) S(w)` of coordinates
(angles are anticlockwise as seen), applied by bilinear lookup at :math:`G^{-1} p` in the image
continued by reflection and supersampled twice by the wavelet filter sym6, whose transpose brings
the result back. The filter is orthonormal, so an image with :math:`G = 1` comes out as it went in.
The map is centred half a pixel of the supersampled grid left of and above the image's centre, as
in the reference implementation; the filter delays by 0.4 of such a pixel, so what is seen turns
about a point 0.05 pixels from the centre.

EDM trained its CIFAR-10 teachers with p = 0.12 (``teacher.augment``); CTM's students see none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ctm_core.training.acceleration import full_precision
from ctm_core.training.rows import send

#: Number of augmentation labels.
LABEL_DIM = 9

#: Low-pass filter of the symlet, or least asymmetric wavelet, with six vanishing moments
#: (Daubechies 1992, chapter 6).
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)


class Settings(NamedTuple):
    """Probability p, its multiplier for each transform, and the strengths; EDM's by default.

    A transform acts where its uniform number is below multiplier times p.
    """

    p: float = 0.12
    xflip: float = 1e8
    yflip: float = 1.0
    scale: float = 1.0
    rotate_frac: float = 1.0
    aniso: float = 1.0
    translate_frac: float = 1.0
    scale_std: float = 0.2
    rotate_frac_max: float = 1.0
    aniso_std: float = 0.2
    aniso_rotate_prob: float = 0.5
    translate_frac_std: float = 0.125


#: What EDM's teachers were trained with.
EDM = Settings()


class Draws(NamedTuple):
    """Random numbers of a batch, in the order they are drawn.

    Each of shape (B,), but ``trans_w`` of (2, B): coins 0 or 1; ``*_w`` standard normal; the rest
    uniform on (0, 1), ``*_u`` deciding whether a transform acts.
    """

    xflip_coin: Tensor
    xflip_u: Tensor
    yflip_coin: Tensor
    yflip_u: Tensor
    scale_w: Tensor
    scale_u: Tensor
    rot_v: Tensor
    rot_u: Tensor
    aniso_w: Tensor
    aniso_r: Tensor
    aniso_u: Tensor
    aniso_rotate_u: Tensor
    trans_w: Tensor
    trans_u: Tensor


class Parameters(NamedTuple):
    """What is done to each image, each of shape (B,); zero (false) where a transform rests."""

    xflip: Tensor
    yflip: Tensor
    scale: Tensor
    angle: Tensor
    aniso: Tensor
    axis: Tensor
    translate_x: Tensor
    translate_y: Tensor

    def labels(self) -> Tensor:
        """The augmentation labels: shape (B, 9), in the dtype of ``scale``."""
        rotation = self.angle.cos() - 1, self.angle.sin()
        anisotropy = self.aniso * self.axis.cos(), self.aniso * self.axis.sin()
        translation = self.translate_x, self.translate_y
        columns = (self.xflip, self.yflip, self.scale, *rotation, *anisotropy, *translation)
        return torch.stack([column.to(self.scale.dtype) for column in columns], dim=1)


def draw(uniform: Callable[[str], Tensor], stream: str = "augment") -> Draws:
    """Draws by their laws.

    ``uniform`` maps the name of a stream, which ``stream`` begins, to one uniform number in (0, 1)
    per sample, shape (B,), such as :meth:`ctm_core.training.batches.Batch.uniform`.
    """

    def normal(name: str) -> Tensor:
        value: Tensor = torch.special.ndtri(uniform(f"{stream}/{name}"))
        return value

    values = {}
    for name in Draws._fields:
        if name == "trans_w":
            values[name] = torch.stack([normal("trans_w_x"), normal("trans_w_y")])
        elif name.endswith("_w"):
            values[name] = normal(name)
        elif name.endswith("_coin"):
            values[name] = (uniform(f"{stream}/{name}") < 0.5).long()
        else:
            values[name] = uniform(f"{stream}/{name}")
    return Draws(**values)


def activate(draws: Draws, settings: Settings = EDM) -> Parameters:
    """Which transforms act, and how strongly in units of their standard deviation."""

    def acting(value: Tensor, gate: Tensor, multiplier: float) -> Tensor:
        return torch.where(gate < multiplier * settings.p, value, torch.zeros_like(value))

    def angle(unit: Tensor) -> Tensor:
        return (2 * unit - 1) * math.pi

    aniso = acting(draws.aniso_w, draws.aniso_u, settings.aniso)
    axis = torch.where(draws.aniso_rotate_u < settings.aniso_rotate_prob, draws.aniso_r, 0.5)
    rotation = angle(draws.rot_v) * settings.rotate_frac_max
    return Parameters(
        xflip=acting(draws.xflip_coin, draws.xflip_u, settings.xflip),
        yflip=acting(draws.yflip_coin, draws.yflip_u, settings.yflip),
        scale=acting(draws.scale_w, draws.scale_u, settings.scale),
        angle=acting(rotation, draws.rot_u, settings.rotate_frac),
        aniso=aniso,
        axis=angle(axis),
        translate_x=acting(draws.trans_w[0], draws.trans_u, settings.translate_frac),
        translate_y=acting(draws.trans_w[1], draws.trans_u, settings.translate_frac),
    )


def augment(
    images: Tensor,
    parameters: Parameters,
    settings: Settings = EDM,
    margins: tuple[int, int, int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Transformed images (B, C, H, W), floating, and their labels (B, 9), of the same dtype.

    ``margins`` are the pixels of reflection to the left, right, top and bottom, each less than the
    side; beyond is zero. None takes as many as there are. Unless they depend on the batch, a
    sample's result depends on no other sample.
    """
    flip = [send(value.bool(), images.device).view(-1, 1, 1, 1) for value in parameters[:2]]
    x = torch.where(flip[0], images.flip(3), images)
    x = torch.where(flip[1], x.flip(2), x)
    height, width = images.shape[2:]
    inverse = inverse_map(parameters, (height, width), settings)
    # Lookups far outside of their pixels lose what bf16 would keep.
    with full_precision(images.device.type):
        x = _warp(x, inverse, margins or (width - 1, width - 1, height - 1, height - 1))
    return x, parameters.labels().to(images, non_blocking=True)


def inverse_map(parameters: Parameters, size: tuple[int, int], settings: Settings = EDM) -> Tensor:
    r"""The map (B, 3, 3), float64, from a pixel of the result to the place that it shows.

    :math:`C^{-1} S^{-1} R^{-1} A^{-1} T^{-1} C` in pixels from the image's centre, x to the right
    and y downwards, C the shift of a quarter pixel.
    """
    quarter = torch.full_like(parameters.scale, 0.25, dtype=torch.float64)
    inner = _inverse(parameters, size, settings)
    return _translation(-quarter, -quarter) @ inner @ _translation(quarter, quarter)


def batch_margins(
    parameters: Parameters, size: tuple[int, int], settings: Settings = EDM
) -> tuple[int, int, int, int]:
    """The margins of the reference implementation, as :func:`augment` takes them.

    As far as the corner pixels of any sample of the batch are looked up outside of the image, and
    six pixels more for the filter, but less than a side. Where a sample is magnified that may fall
    short by some of the filter's smallest taps; results then differ by about 1e-5 of an image's
    norm from those with whole margins. The rule is inferred from reference numbers: among all
    margins, these alone fit them best.
    """
    height, width = size
    x, y = (width - 1) / 2, (height - 1) / 2
    corners = torch.tensor([[-x, x, x, -x], [-y, -y, y, y], [1, 1, 1, 1]], dtype=torch.float64)
    seen = _inverse(parameters, size, settings).cpu() @ corners
    reach = []
    for axis, half in enumerate((x, y)):
        for furthest in (-float(seen[:, axis].min()), float(seen[:, axis].max())):
            beyond = math.ceil(furthest - half + len(SYM6) / 2)
            reach.append(min(max(beyond, 0), int(2 * half)))
    left, right, top, bottom = reach
    return left, right, top, bottom


def _inverse(parameters: Parameters, size: tuple[int, int], settings: Settings) -> Tensor:
    """The map of :func:`inverse_map` without the shift."""
    p = Parameters(*(value.double() for value in parameters))
    height, width = size
    stretch = (2**settings.aniso_std) ** p.aniso
    zoom = (2**settings.scale_std) ** p.scale
    anisotropic = _rotation(-p.axis) @ _scaling(1 / stretch, stretch) @ _rotation(p.axis)
    translation = _translation(
        -p.translate_x * settings.translate_frac_std * width,
        -p.translate_y * settings.translate_frac_std * height,
    )
    return _scaling(1 / zoom, 1 / zoom) @ _rotation(p.angle) @ anisotropic @ translation


def _warp(x: Tensor, inverse: Tensor, margins: tuple[int, int, int, int]) -> Tensor:
    channels, height, width = x.shape[1:]
    taps = torch.tensor(SYM6, dtype=torch.float64) / math.sqrt(2)  # they add up to one
    kernel = torch.outer(taps, taps).to(x, non_blocking=True).expand(channels, 1, -1, -1)
    left, right, top, bottom = margins
    x = functional.pad(x, margins, mode="reflect")
    reach = len(SYM6) // 2 - 1
    fine = functional.conv_transpose2d(x, 4 * kernel, stride=2, padding=reach, groups=channels)

    # The result at twice its size, and as much around it as the filter needs to come back.
    shape = [len(x), channels, 2 * (height + reach), 2 * (width + reach)]
    theta = inverse[:, :2].clone()
    # Normalised coordinates run over [-1, 1] from edge to edge: (x, y) = (width, height) / 2.
    theta[:, :, 0] *= shape[3] / 4
    theta[:, :, 1] *= shape[2] / 4
    theta[:, 0, 2] += (left - right) / 2  # the padded image has another centre
    theta[:, 1, 2] += (top - bottom) / 2
    theta[:, 0] /= x.shape[3] / 2
    theta[:, 1] /= x.shape[2] / 2
    grid = functional.affine_grid(send(theta, x.device), shape, align_corners=False).to(x)
    fine = functional.grid_sample(fine, grid, mode="bilinear", align_corners=False)
    return functional.conv2d(fine, kernel, stride=2, groups=channels)


def _affine(*entries: Tensor | float) -> Tensor:
    """Matrices (B, 3, 3) by the entries of their first two rows: tensors (B,) and constants."""
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    columns = [torch.as_tensor(entry).to(like).expand_as(like) for entry in (*entries, 0, 0, 1)]
    return torch.stack(columns, dim=-1).view(-1, 3, 3)


def _translation(x: Tensor, y: Tensor) -> Tensor:
    return _affine(1, 0, x, 0, 1, y)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return _affine(x, 0, 0, 0, y, 0)


def _rotation(angle: Tensor) -> Tensor:
    return _affine(angle.cos(), -angle.sin(), 0, angle.sin(), angle.cos(), 0)
