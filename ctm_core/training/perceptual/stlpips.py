"""Shift-tolerant LPIPS on VGG16 (Ghildyal & Liu, ECCV 2022).

Only the weight file of the package ``stlpips-pytorch`` is read; its code is never imported.
"""

from __future__ import annotations

import importlib.metadata
import sysconfig
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file
from ctm_core.training.perceptual.vgg import VggDistance

__all__ = [
    "STLPIPS_VGG_FILE",
    "STLPIPS_VGG_SHA256",
    "ShiftTolerantVgg",
    "stlpips_weight_file",
]

#: The package that carries the perceptual weights, the file in it, and that file's hash.
STLPIPS_PACKAGE = "stlpips-pytorch"
STLPIPS_VERSION = "0.0.2"
STLPIPS_VGG_FILE = "stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth"
STLPIPS_VGG_SHA256 = "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250"


class _Blur(nn.Module):
    """Binomial 3 x 3 filter on each channel, stride 2, on an input reflected by two pixels."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.empty(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(padded, self.kernel, stride=2, groups=x.shape[1])


class ShiftTolerantVgg(VggDistance):
    """LPIPS on an anti-aliased VGG16; :mod:`ctm_core.training.perceptual.vgg` has the formula.

    Where VGG16 max-pools with stride 2, this trunk max-pools 2 x 2 with stride 1 and then blurs
    with stride 2. Images of any other size are resized to ``resize``.
    """

    name = "stlpips_vgg"
    weights_sha256 = STLPIPS_VGG_SHA256
    shift: Tensor
    scale: Tensor

    def __init__(self, resize: int) -> None:
        super().__init__(resize, lambda width: [nn.MaxPool2d(2, stride=1), _Blur(width)])
        # Buffers come first in a module's state, as in the weight file: see `load`.
        self.register_buffer("shift", torch.empty(1, 3, 1, 1))
        self.register_buffer("scale", torch.empty(1, 3, 1, 1))

    def normalised(self, x: Tensor) -> Tensor:
        """See :meth:`VggDistance.normalised`."""
        return (x - self.shift) / self.scale

    floor = 1e-10

    def inverse(self, norm: Tensor) -> Tensor:
        """See :meth:`VggDistance.inverse`."""
        return 1 / norm.clamp(min=self.floor)

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
