"""Frozen feature networks: maps at strides 4, 8, 16 and 32 of a normalised image.

==================================  ======================  ====================================
name                                channels of the maps    where they are taken
==================================  ======================  ====================================
``deit_base_distilled_patch16_224`` 96, 192, 384, 768       after blocks 3, 6, 9, 12, before the
                                                            last norm, without class tokens; by
                                                            random convolutions to four strides
``tf_efficientnet_lite0``           24, 40, 112, 320        after stages 2, 3, 5, 7
``tiny``                            8, 16, 32, 64           four random convolutions (for tests
                                                            and trials)
==================================  ======================  ====================================

The architectures are timm's. Lite0's weights come inside an installed package; DeiT's are a file
that its publisher offers. The pretrained networks stay in eval mode and out of ``state_dict``,
parameters and gradients; random layers are drawn from the run's seed and do belong to the state.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctm_core.data import assets
from ctm_core.models import torchvision_shim
from ctm_core.models.features import efficientnet_lite0
from ctm_core.runtime import extras
from ctm_core.runtime.errors import UserError
from ctm_core.runtime.files import sha256_file
from ctm_core.training.discriminator.projected_layers import Conv2d, ConvTranspose2d


class Backbone(nn.Module):
    """A frozen feature network; ``mean`` and ``std`` are those of its images in [0, 1]."""

    name: str
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    #: Of the four maps, finest first.
    channels: tuple[int, int, int, int]
    #: The pretrained network, if any: no submodule, so that neither ``train()`` nor
    #: ``state_dict()`` nor an optimiser meets it, but moved and cast with the rest.
    trunk: nn.Module | None
    shift: Tensor
    scale: Tensor
    #: Hash of the file its weights come from; None if they are random.
    weights_sha256: str | None = None

    def __init__(self, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.__dict__["trunk"] = None if trunk is None else trunk.eval().requires_grad_(False)
        for name, values in (("shift", self.mean), ("scale", self.std)):
            numbers = torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
            self.register_buffer(name, numbers, persistent=False)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.trunk is not None:
            self.trunk._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def maps(self, x: Tensor) -> list[Tensor]:
        """Four maps, finest first, of normalised images (B, 3, S, S), S a multiple of 32."""
        raise NotImplementedError

    def forward(self, images: Tensor, resolution: int) -> list[Tensor]:
        """Four maps (B, C_l, S/4, S/4), …, (B, C_l, S/32, S/32) of images (B, 1 or 3, H, W).

        They are in about [-1, 1], and resized after normalisation to the side S, ``resolution``,
        without antialiasing.
        """
        x = (images.expand(-1, 3, -1, -1) + 1) / 2
        x = (x - self.shift.to(x.dtype)) / self.scale.to(x.dtype)
        if x.shape[2:] != (resolution, resolution):
            size = (resolution, resolution)
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return self.maps(x)


class Deit(Backbone):
    """DeiT-B/16 distilled (Touvron et al. 2021), made a pyramid as in DPT (Ranftl et al. 2021)."""

    name = "deit_base_distilled_patch16_224"
    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    channels = (96, 192, 384, 768)
    #: Blocks whose outputs are taken, from 0.
    taps = (2, 5, 8, 11)

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__(trunk)
        width = int(trunk.embed_dim)  # type: ignore[arg-type]
        a, b, c, d = self.channels
        # The numbers are the layers' places in the released code's lists, hence their names.
        self.layer1 = _numbered(Conv2d(width, a, 1), ConvTranspose2d(a, a, 4, stride=4))
        self.layer2 = _numbered(Conv2d(width, b, 1), ConvTranspose2d(b, b, 2, stride=2))
        self.layer3 = _numbered(Conv2d(width, c, 1))
        self.layer4 = _numbered(Conv2d(width, d, 1), Conv2d(d, d, 3, stride=2, padding=1))
        self.requires_grad_(False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """See :meth:`Backbone.maps`."""
        assert self.trunk is not None
        tokens = self.trunk.forward_intermediates(  # type: ignore[operator]
            x, indices=list(self.taps), norm=False, intermediates_only=True
        )
        layers = (self.layer1, self.layer2, self.layer3, self.layer4)
        return [layer(grid) for layer, grid in zip(layers, tokens, strict=True)]


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 (Tan & Le 2019); the trunk holds its stem and stages in four groups."""

    name = "tf_efficientnet_lite0"
    channels = (24, 40, 112, 320)

    def __init__(self, network: nn.Module) -> None:
        stem = nn.Sequential(network.conv_stem, network.bn1)  # type: ignore[arg-type]
        s: Any = network.blocks
        groups = [[*stem, s[0], s[1]], [s[2]], [s[3], s[4]], [s[5], s[6]]]
        super().__init__(nn.ModuleList(nn.Sequential(*group) for group in groups))

    def maps(self, x: Tensor) -> list[Tensor]:
        """See :meth:`Backbone.maps`."""
        assert isinstance(self.trunk, nn.ModuleList)
        maps: list[Tensor] = []
        for group in self.trunk:
            x = group(x)
            maps.append(x)
        return maps


class Tiny(Backbone):
    """Four random convolutions with LeakyReLU(0.2)."""

    name = "tiny"
    channels = (8, 16, 32, 64)

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = self.channels
        halving = (Conv2d(i, o, 2, stride=2) for i, o in ((a, b), (b, c), (c, d)))
        self.stages = nn.ModuleList([Conv2d(3, a, 4, stride=4), *halving])
        self.requires_grad_(False)

    def maps(self, x: Tensor) -> list[Tensor]:
        """See :meth:`Backbone.maps`."""
        maps: list[Tensor] = []
        for stage in self.stages:
            x = functional.leaky_relu(stage(x), 0.2)
            maps.append(x)
        return maps


def build_backbone(name: str, resolution: int, *, pretrained: bool = True) -> Backbone:
    """A feature network, its trunk's weights loaded; random layers are left to the caller.

    DeiT's position embedding is resampled to the resolution. ``pretrained`` False gives random
    weights: for tests and for measuring time, never for training. Raises UserError if the weights
    are missing or are not the known file; the message says where to get them.
    """
    if name == Tiny.name:
        return Tiny()
    if name == EfficientNetLite0.name and pretrained:
        lite0 = EfficientNetLite0(efficientnet_lite0.load_network())
        lite0.weights_sha256 = efficientnet_lite0.weights_sha256(name)
        return lite0
    torchvision_shim.apply()
    timm = extras.load("timm")
    size: dict[str, Any] = {"img_size": resolution} if name == Deit.name else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False, **size)
    if name == EfficientNetLite0.name:
        return EfficientNetLite0(network)
    backbone = Deit(network)
    if pretrained:
        path = assets.require("deit")
        load_deit(network, path)
        backbone.weights_sha256 = sha256_file(path)
    return backbone


def load_deit(network: nn.Module, path: Path) -> None:
    """Fill timm's DeiT from its publisher's file, ``{"model": state_dict}``; nothing executes."""
    resample_abs_pos_embed = extras.load("timm.layers.pos_embed").resample_abs_pos_embed
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["model"]
        own: Any = network
        state["pos_embed"] = resample_abs_pos_embed(
            state["pos_embed"],
            new_size=list(own.patch_embed.grid_size),
            num_prefix_tokens=own.num_prefix_tokens,
        )
        network.load_state_dict(state, strict=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError):
        raise UserError(
            f"{path} is not {Deit.name} as its publisher saved it; fetch it again"
        ) from None


def _numbered(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict((str(n), layer) for n, layer in enumerate(layers, start=3)))
