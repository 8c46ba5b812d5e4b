"""LPIPS on VGG16 (Zhang et al. 2018), the distance of the paper.

The trunk is torchvision's VGG16 of ImageNet, the weights of the comparison those of LPIPS 0.1 out
of the package ``lpips``. As CTM was released, the trunk's max pools are replaced by average pools,
and images whose side is below 256 are resized to 224; the package has max pools and never resizes.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ctm_core.config import Perceptual
from ctm_core.data import assets
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file
from ctm_core.training.distances._vgg import VGG16_STAGES, VggDistance

TRAITS = {"perceptual": True, "pooling": True, "assets": ("vgg16", "lpips-vgg")}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: Images of at least this side are not resized (released behaviour).
LARGE = 256


class LpipsVgg(VggDistance):
    """LPIPS; :mod:`ctm_core.training.distances._vgg` has the formula.

    Images below 256 are resized to the side ``resize``, 224 as released. ``pooling`` is
    ``average`` as CTM was released, ``max`` as VGG16 was trained and LPIPS calibrated.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, resize: int = 224, pooling: Literal["average", "max"] = "average") -> None:
        pool = nn.AvgPool2d if pooling == "average" else nn.MaxPool2d
        super().__init__(resize, lambda _: [pool(2)])
        for name, values in (("shift", IMAGENET_MEAN), ("scale", IMAGENET_STD)):
            numbers = torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
            self.register_buffer(name, numbers, persistent=False)

    @classmethod
    def configured(cls, section: Perceptual | None) -> LpipsVgg:
        """See :meth:`.Distance.configured`."""
        assert section is not None
        return cls(section.resize, section.pooling or "average")

    def read_weights(self) -> None:
        """See :meth:`.Distance.read_weights`."""
        self.load(assets.require("vgg16"), assets.require("lpips-vgg"))

    def resizes(self, images: Tensor) -> bool:
        """See :meth:`VggDistance.resizes`."""
        return images.shape[2] < LARGE and super().resizes(images)

    def normalised(self, x: Tensor) -> Tensor:
        """See :meth:`VggDistance.normalised`."""
        return ((x + 1) / 2 - self.shift.to(x.dtype)) / self.scale.to(x.dtype)

    def inverse(self, norm: Tensor) -> Tensor:
        """See :meth:`VggDistance.inverse`."""
        return 1 / (norm + 1e-10)

    def fill(self, convolutions: Sequence[tuple[Tensor, Tensor]], heads: Sequence[Tensor]) -> None:
        """Set the weights: (weight, bias) of the 13 convolutions, and five vectors (C_l,)."""
        own = [layer for layer in self.stages.modules() if isinstance(layer, nn.Conv2d)]
        with torch.no_grad():
            for layer, (weight, bias) in zip(own, convolutions, strict=True):
                assert layer.bias is not None
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
            for head, values in zip(self.heads, heads, strict=True):
                head.copy_(values.view_as(head))

    def load(self, trunk: Path, heads: Path) -> None:
        """Fill in the weights from ``vgg16-397923af.pth`` and from the package's ``vgg.pth``."""
        places = _torchvision_places()
        names = [f"features.{place}.{kind}" for place in places for kind in ("weight", "bias")]
        state = _read(trunk, "torchvision's VGG16", names)
        linear = [f"lin{layer}.model.1.weight" for layer in range(len(VGG16_STAGES))]
        learned = _read(heads, "LPIPS 0.1 on VGG16", linear)
        try:
            self.fill(list(zip(state[::2], state[1::2], strict=True)), learned)
        except RuntimeError as error:
            raise UserError(f"{trunk} or {heads} holds tensors of other shapes: {error}") from None
        self.weights_sha256 = f"{sha256_file(trunk)};{sha256_file(heads)}"


def _read(path: Path, what: str, names: Sequence[str]) -> list[Tensor]:
    """The named tensors of a file that torch saved, without executing anything."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return [state[name] for name in names]
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError):
        raise UserError(f"{path} is not {what}; fetch it again, or correct the path") from None


def _torchvision_places() -> list[int]:
    """Places of the convolutions in torchvision's list of layers, in which pools come last."""
    layers = [layer for _, count in VGG16_STAGES for layer in [*["conv", "relu"] * count, "pool"]]
    return [place for place, layer in enumerate(layers) if layer == "conv"]


DISTANCE = LpipsVgg
