"""The discriminator: for each feature network a branch of projections and heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ctm_core import config
from ctm_core.config.gan import down_blocks
from ctm_core.runtime.errors import UserError
from ctm_core.training.discriminator import diffaugment
from ctm_core.training.discriminator.backbones import Backbone, build_backbone
from ctm_core.training.discriminator.diffaugment import DiffAugment
from ctm_core.training.discriminator.heads import heads
from ctm_core.training.discriminator.projected_layers import initialise
from ctm_core.training.discriminator.projection import Projection
from ctm_core.training.distance import at_least_single


class Branch(nn.Module):
    """One frozen feature network, its projections, and its four heads."""

    def __init__(self, backbone: Backbone, section: config.Discriminator) -> None:
        super().__init__()
        self.resolution = section.resolution
        self.backbone = backbone
        self.projection = Projection(backbone.channels, section.width)
        downs = down_blocks(section.resolution)
        channels = self.projection.channels
        self.mini_discs = heads(channels, downs, section.width, section.batch_norm)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Projected features, finest first, of images (B, 1 or 3, H, W) in about [-1, 1]."""
        pyramid: list[Tensor] = self.projection(self.backbone(images, self.resolution))
        return pyramid

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, n) of all heads, finest map first, in float32 at least."""
        maps = zip(self.mini_discs.values(), self.pyramid(images), strict=True)
        logits = torch.cat([head(x).flatten(1) for head, x in maps], dim=1)
        return at_least_single(logits)


class Discriminator(nn.Module):
    """Logits of images by one or several branches, which are submodules by their networks' names.

    What trains are the heads alone (``<backbone>.mini_discs.…``); frozen random layers
    (``<backbone>.projection.…``, ``<backbone>.backbone.…``) belong to the state beside them.
    Starting values depend on ``seed`` and on nothing else. ``pretrained`` False gives the feature
    networks random weights: for tests and for measuring time alone. Raises UserError if their
    weights are missing or wrong.
    """

    def __init__(
        self, section: config.Discriminator, seed: int, *, pretrained: bool = True
    ) -> None:
        super().__init__()
        for name in section.backbones:
            backbone = build_backbone(name, section.resolution, pretrained=pretrained)
            self.add_module(name, Branch(backbone, section))
        initialise(self, seed, "discriminator")

    def branches(self) -> dict[str, Branch]:
        """The branches by the names of their networks, in order."""
        return {name: b for name, b in self.named_children() if isinstance(b, Branch)}

    def forward(
        self, images: Tensor, augmentations: Mapping[str, DiffAugment] | None = None
    ) -> Tensor:
        """Logits (B, n), branch by branch, of images (B, 1 or 3, H, W) in about [-1, 1].

        Float32 at least, 64 per branch at 224, differentiable with respect to the images, which
        :meth:`draw` has augmentations for.
        """
        if images.shape[1] not in (1, 3):
            raise UserError(
                f"the discriminator takes images of 1 or 3 channels, not {images.shape[1]}"
            )
        logits = []
        for name, branch in self.branches().items():
            x = images
            if augmentations is not None:
                x = diffaugment.diffaugment(x, augmentations[name])
            logits.append(branch(x))
        return torch.cat(logits, dim=1)

    def draw(
        self, uniform: Callable[[str], Tensor], size: tuple[int, int], stream: str
    ) -> dict[str, DiffAugment]:
        """DiffAugment's draws for each backbone: see :func:`.diffaugment.draw`."""
        names = self.branches()
        return {name: diffaugment.draw(uniform, size, f"{stream}/{name}") for name in names}

    def trained(self) -> list[nn.Parameter]:
        """The heads' parameters, also while a generator step freezes them."""
        return [p for b in self.branches().values() for p in b.mini_discs.parameters()]

    def load_heads(self, state: Mapping[str, Tensor]) -> None:
        """Load the heads alone, as the published ``d_model*.pt`` files hold them.

        Raises
        ------
        UserError
            If tensors are missing, foreign or of another shape; the first is named.
        """
        own = {name: value for name, value in self.state_dict().items() if ".mini_discs." in name}
        both = own.keys() & state.keys()
        for problem, names in (
            ("lacks", own.keys() - state.keys()),
            ("has the foreign tensor", state.keys() - own.keys()),
            ("has another shape of", {n for n in both if own[n].shape != state[n].shape}),
        ):
            if names:
                raise UserError(f"the discriminator's state {problem} {min(names)}")
        self.load_state_dict(state, strict=False)  # only what is not a head is missing
