"""The distance d of the consistency loss, one value a sample.

=================  ==============================================================================
name               d(a, b) for one sample of D elements
=================  ==============================================================================
``l2``             (1/D) Σ (a - b)²
``pseudo_huber``   √(Σ (a - b)² + c²) - c with c = 0.00054 √D (Song & Dhariwal 2023, section 3.3)
``stlpips_vgg``    shift-tolerant LPIPS on VGG16 (Ghildyal & Liu, ECCV 2022), pretrained
=================  ==============================================================================

CTM measures with the VGG16 LPIPS of Zhang et al. (2018) at 224 x 224. ``stlpips_vgg`` is the same
construction with an anti-aliased trunk that was trained anew, so its numbers are ST-LPIPS, not
LPIPS. Only the weight file of the package ``stlpips-pytorch`` is read; its code is never imported.
"""

from __future__ import annotations

import importlib.metadata
import math
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.errors import UserError
from ctm_core.files import sha256_file

if TYPE_CHECKING:
    from ctm_core import config

__all__ = [
    "STLPIPS_VGG_SHA256",
    "Distance",
    "PseudoHuber",
    "ShiftTolerantVgg",
    "SquaredError",
    "build_distance",
    "stlpips_weight_file",
]

#: The package that carries the perceptual weights, the file in it, and that file's hash.
STLPIPS_PACKAGE = "stlpips-pytorch"
STLPIPS_VERSION = "0.0.2"
STLPIPS_VGG_FILE = "stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth"
STLPIPS_VGG_SHA256 = "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250"

#: c of the pseudo-Huber distance is this factor times √D.
PSEUDO_HUBER_FACTOR = 0.00054

#: Width and number of the 3 x 3 convolutions of VGG16's five stages.
VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class Distance(nn.Module):
    """d(a, b), without trainable parameters.

    Attributes
    ----------
    name : str
        Its name in the config.
    weights_sha256 : str or None
        Hash of the weight file it reads; None if it reads none.
    """

    name: str
    weights_sha256: str | None = None

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of samples.

        Parameters
        ----------
        a, b : Tensor, shape (B, C, H, W), floating
            Images in [-1, 1]; values beyond are taken as they are, never clamped.

        Returns
        -------
        Tensor, shape (B,), float32 or float64
            Differentiable with respect to both arguments.

        Raises
        ------
        ValueError
            If the shapes differ: broadcasting would hide the mistake.
        """
        if a.shape != b.shape:
            raise ValueError(f"distance between shapes {tuple(a.shape)} and {tuple(b.shape)}")
        value: Tensor = super().__call__(a, b)
        return value


class SquaredError(Distance):
    """Mean of squared differences over a sample's elements."""

    name = "l2"

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Distance.__call__`."""
        return (_at_least_single(a) - _at_least_single(b)).square().flatten(1).mean(1)


class PseudoHuber(Distance):
    """√(Σ d² + c²) - c: quadratic for ‖d‖ ≪ c, the plain norm ‖d‖ beyond."""

    name = "pseudo_huber"

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Distance.__call__`."""
        difference = (_at_least_single(a) - _at_least_single(b)).flatten(1)
        squared = difference.square().sum(1)
        c = PSEUDO_HUBER_FACTOR * math.sqrt(difference.shape[1])
        # √(S + c²) - c = S / (√(S + c²) + c), free of the cancellation that eats small S.
        return squared / ((squared + c * c).sqrt() + c)


class _Blur(nn.Module):
    """Binomial 3 x 3 filter on each channel, stride 2, on an input reflected by two pixels."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.empty(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(padded, self.kernel, stride=2, groups=x.shape[1])


class ShiftTolerantVgg(Distance):
    """Shift-tolerant LPIPS on the anti-aliased VGG16.

    With the features f_l (relu1_2, 2_2, 3_3, 4_3, 5_3), scaled to unit length over the channels at
    every pixel, and one non-negative weight w_lc a channel::

        d(a, b) = Σ_l  mean_{hw}  Σ_c  w_lc (f_lchw(a)/‖f_lhw(a)‖ - f_lchw(b)/‖f_lhw(b)‖)²

    Where VGG16 max-pools with stride 2, this trunk max-pools 2 x 2 with stride 1 and then blurs
    with stride 2. The weights are frozen and nothing depends on train or eval mode; the gradient
    reaches the inputs alone. Features are computed in the weights' dtype (bf16 under autocast),
    their comparison in float32 at least.

    Parameters
    ----------
    resize : int, ≥ 32
        Side of the square to which images of another size are resized, bilinearly with
        ``align_corners=False``.

    Notes
    -----
    A new instance holds uninitialised memory; :func:`build_distance` loads the pretrained weights.
    """

    name = "stlpips_vgg"
    weights_sha256 = STLPIPS_VGG_SHA256
    shift: Tensor
    scale: Tensor

    def __init__(self, resize: int) -> None:
        super().__init__()
        self.resize = resize
        # Everything is registered in the order of the weight file: see `load`.
        self.register_buffer("shift", torch.empty(1, 3, 1, 1))
        self.register_buffer("scale", torch.empty(1, 3, 1, 1))
        self.stages = nn.ModuleList()
        incoming = 3
        for width, convolutions in VGG16_STAGES:
            layers: list[nn.Module] = []
            if self.stages:
                layers += [nn.MaxPool2d(2, stride=1), _Blur(incoming)]
            for _ in range(convolutions):
                # Through "meta" no initial values are drawn from the global random state.
                convolution = nn.Conv2d(incoming, width, 3, padding=1, device="meta")
                layers += [convolution.to_empty(device="cpu"), nn.ReLU(inplace=True)]
                incoming = width
            self.stages.append(nn.Sequential(*layers))
        self.heads = nn.ParameterList(torch.empty(1, width, 1, 1) for width, _ in VGG16_STAGES)
        self.requires_grad_(False)
        self.eval()

    def load(self, path: Path) -> None:
        """Fill in the weights from ``vgg_shift_tolerant.pth``.

        Raises
        ------
        UserError
            If the file is missing or is not the one whose hash is pinned.
        """
        want = (
            f"stlpips_vgg reads {STLPIPS_VGG_FILE} (sha256 {STLPIPS_VGG_SHA256}) of the PyPI "
            f"package {STLPIPS_PACKAGE} {STLPIPS_VERSION}"
        )
        cure = f"run `pip install {STLPIPS_PACKAGE}=={STLPIPS_VERSION}` or put that file there"
        if not path.is_file():
            raise UserError(f"{want}, but {path} is missing: {cure}")
        if (found := sha256_file(path)) != STLPIPS_VGG_SHA256:
            again = cure.replace("install", "install --force-reinstall")
            raise UserError(f"{want}, but {path} has sha256 {found}: {again}")
        stored = torch.load(path, map_location="cpu", weights_only=True)
        # The pinned hash fixes the order of the tensors, so names need no translation.
        self.load_state_dict(dict(zip(self.state_dict(), stored.values(), strict=True)))

    def features(self, images: Tensor) -> list[Tensor]:
        """Features of the five stages.

        Parameters
        ----------
        images : Tensor, shape (B, 1 or 3, H, W), floating, in [-1, 1]

        Returns
        -------
        list of Tensor
            Shapes (B, C_l, H_l, W_l), of unit length along C_l, float32 or float64.
        """
        channels = images.shape[1]
        if channels not in (1, 3):
            raise UserError(
                f"the distance stlpips_vgg takes images of 1 or 3 channels, not {channels}; "
                "set distance to l2 or pseudo_huber"
            )
        x = images.to(self.shift.dtype)
        if x.shape[2:] != (self.resize, self.resize):
            size = (self.resize, self.resize)
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = (x.expand(-1, 3, -1, -1) - self.shift) / self.scale
        features = []
        for stage in self.stages:
            x = stage(x)
            # A pixel whose features are all zero stays zero, with a finite gradient.
            features.append(functional.normalize(_at_least_single(x), dim=1, eps=1e-10))
        return features

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """See :meth:`Distance.__call__`."""
        # Two passes, not one of the pair: the target's features then need no graph.
        pairs = zip(self.features(a), self.features(b), self.heads, strict=True)
        stages = [
            ((of_a - of_b).square().mean((2, 3)) * head.flatten()).sum(1)
            for of_a, of_b, head in pairs
        ]
        return torch.stack(stages).sum(0)


def stlpips_weight_file() -> Path:
    """Where the perceptual weights are, or belong if the package is not installed."""
    try:
        files = importlib.metadata.distribution(STLPIPS_PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix() == STLPIPS_VGG_FILE:
            return Path(str(file.locate()))
    return Path(sysconfig.get_path("purelib"), STLPIPS_VGG_FILE)


def build_distance(name: str, perceptual: config.Perceptual | None = None) -> Distance:
    """The distance a config names, its weights loaded and frozen, on the CPU in float32.

    Raises
    ------
    UserError
        If the perceptual weights are missing or damaged; the sentence says what to install.
    """
    if name == "l2":
        return SquaredError()
    if name == "pseudo_huber":
        return PseudoHuber()
    if name != "stlpips_vgg" or perceptual is None:
        raise ValueError(f"config.Student lets no {name} pass without perceptual.resize")
    network = ShiftTolerantVgg(perceptual.resize)
    network.load(stlpips_weight_file())
    return network


def _at_least_single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
