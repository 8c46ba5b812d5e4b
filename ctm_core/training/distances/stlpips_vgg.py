"""Shift-tolerant LPIPS on VGG16 (Ghildyal & Liu, ECCV 2022).

Only the weight file of the package ``stlpips-pytorch`` is read; its code is never imported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.config import Perceptual
from ctm_core.data import assets
from ctm_core.runtime.files import sha256_file
from ctm_core.training.distances._vgg import VggDistance

TRAITS = {"perceptual": True, "assets": ("stlpips-vgg",)}


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
    """LPIPS on an anti-aliased VGG16; :mod:`ctm_core.training.distances._vgg` has the formula.

    Where VGG16 max-pools with stride 2, this trunk max-pools 2 x 2 with stride 1 and then blurs
    with stride 2. Images of any other size are resized to ``resize``.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, resize: int) -> None:
        super().__init__(resize, lambda width: [nn.MaxPool2d(2, stride=1), _Blur(width)])
        # Buffers come first in a module's state, as in the weight file: see `read_weights`.
        self.register_buffer("shift", torch.empty(1, 3, 1, 1))
        self.register_buffer("scale", torch.empty(1, 3, 1, 1))

    def normalised(self, x: Tensor) -> Tensor:
        """See :meth:`VggDistance.normalised`."""
        return (x - self.shift) / self.scale

    floor = 1e-10

    def inverse(self, norm: Tensor) -> Tensor:
        """See :meth:`VggDistance.inverse`."""
        return 1 / norm.clamp(min=self.floor)

    @classmethod
    def configured(cls, section: Perceptual | None) -> ShiftTolerantVgg:
        """See :meth:`.Distance.configured`."""
        assert section is not None
        return cls(section.resize)

    def read_weights(self) -> None:
        """See :meth:`.Distance.read_weights`."""
        path = assets.require("stlpips-vgg")
        stored = torch.load(path, map_location="cpu", weights_only=True)
        # The file's hash fixes the order of the tensors, so names need no translation.
        self.load_state_dict(dict(zip(self.state_dict(), stored.values(), strict=True)))
        self.weights_sha256 = sha256_file(path)


DISTANCE = ShiftTolerantVgg
